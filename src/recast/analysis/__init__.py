"""Analysis: what the features of a model contain, measured in the shapes world.

The room owns three experiments: linear probes of the subject's position, retrieval of frames by
features (DMT, fig. 2 d), and feature inversion (DMT, fig. 2 a to c). It refuses to know any model
by name. Begin with `probe.py`; `retrieval.py` uses its features.
"""
