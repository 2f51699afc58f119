"""The training of the models that ship, on any rendered world.

The room owns the networks, the stages and the folder of a model; a `Dataset` brings the world. It
refuses to know single worlds. Begin reading with `train.py`.
"""
