"""The shapes world: rendered clips of one moving subject, and the models that are trained on them.

The room owns scenes with exact ground truth, their captions, an oracle that reads clips without
networks, and the training of the models that ship. It refuses to know backbones, methods and
metrics. Begin with `world.py`, then read `captions.py`, `oracle.py` and `training.py`.
"""
