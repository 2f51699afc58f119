"""Analysis: what the features of a model contain, in the shapes world and in clips of one's own.

The room owns three experiments: linear probes of the subject's position, retrieval of frames by
features (DMT, fig. 2 d), and feature inversion (DMT, fig. 2 a to c). It refuses to know any model
by name. Begin with `probe.py`, then read `frame_features.py`.
"""
