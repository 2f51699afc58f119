"""Everything that works on a torch module, for any model.

This room owns the loading and placement of networks, VAEs and text encoders, the reading and
changing of features inside a network, and adapters. It refuses to know single models, methods and
runs. Begin with `pipeline_parts`, which opens the folder of a model, then read `feature_hooks`.
"""
