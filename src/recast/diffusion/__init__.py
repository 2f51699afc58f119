"""The mathematics of diffusion models as plain functions of a denoiser.

This room owns noise schedules, the sampler, the inversion, classifier-free guidance, initial
noise, temporal windows and optimisation. It refuses to know networks, prompts and methods. Begin
with `noise_schedule`, then read `sampling`.
"""
