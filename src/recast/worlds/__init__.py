"""Rendered worlds, whose true motion is known, and the training of the models that ship.

A world owns its scenes, their exact truth and their captions. It refuses to know backbones, methods
and metrics. Begin reading with `menagerie/world.py`.
"""
