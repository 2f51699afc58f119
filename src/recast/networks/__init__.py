"""Everything that touches a torch module, whichever model it belongs to.

This room owns loading and placing networks, VAEs and text encoders, reading and changing features
inside a network, and adapters. It refuses to know any one model, method or run. Begin with
`pipeline_parts`, which opens a model's folder, and with `feature_hooks`.
"""
