"""The scheduler configs of published models, as diffusers writes them."""

from recast.backbones import unet3d

ZEROSCOPE = unet3d.PUBLISHED["zeroscope"]["scheduler/scheduler_config.json"]
STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
ZERO_SNR = STABLE_DIFFUSION | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
"""A schedule whose last level holds no signal, as after Lin et al. 2024."""
