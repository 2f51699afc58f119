"""The shared parts of the methods that train an adapter on clips and sample with it.

This room owns the training settings, the objectives, the training loop with its checkpoints, and
how a motion stores trained parameters. It refuses to know papers and layers: a method chooses the
adapter that it trains. Begin with `trained_method`, then read `training_loop` and `objectives`.
"""
