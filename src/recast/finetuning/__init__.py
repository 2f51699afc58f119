"""What methods share that train an adapter on clips and sample with it.

This room owns the training settings, the objectives, the learn loop with its checkpoints and the
motion files of parameters. It refuses to know papers and layers: a method says which adapter it
trains. Begin with `trained_method`, then read `training_loop` and `objectives`.
"""
