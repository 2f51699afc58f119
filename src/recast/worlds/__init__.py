"""Rendered worlds, in which the true motion is known, and the training of the models that ship.

A world owns its scenes, their exact truth, their captions and a detector that reads clips;
the worlds share the loop in which networks are trained. The room refuses to know backbones, methods
and metrics. Begin with `shapes/world.py`.
"""
