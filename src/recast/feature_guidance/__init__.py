"""The shared parts of the methods that guide a sample by features of the source.

This room owns the reading and injection of features, the inversion that records them, the inner
optimisation of x_t and the losses between features. It refuses to know papers, models and training.
Begin with `feature_matching`, which puts the parts together for DMT and MOFT, then read `trace` and
`latent_guidance`.
"""
