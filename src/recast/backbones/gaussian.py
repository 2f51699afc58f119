"""An exact denoiser for a Gaussian mixture from which every position of a clip is drawn.

The model has no trained weights and no approximation error, so any error in a test comes from the
sampler, the inversion or the method. The tests measure orders of convergence with it. The latents
are the pixels, and the prompt determines the weights of the components. Owns the distribution and
its exact prediction. Knows no method, and imports no network library.
"""

import hashlib
from typing import final

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from recast.backbones.base import Backbone, Conditioning, Defaults, Settings
from recast.diffusion.noise_schedule import Flow, Prediction, Schedule, per_sample
from recast.errors import BadCall, BadModel
from recast.networks.attention_layers import Attention, Transformer
from recast.networks.devices import usable_device
from recast.networks.feature_hooks import Tap
from recast.networks.latent_layout import LatentLayout

ALIASES: dict[str, str] = {"gaussian": "gaussian"}
DESCRIPTIONS = {"gaussian": "An exact mixture of Gaussians without a network, for tests"}
PIPELINES: frozenset[str] = frozenset()
_DEFAULTS = Defaults(frames=8, height=16, width=16, fps=8.0, steps=20, guidance_scale=3.0)
_SETTINGS = Settings(device="cpu")


class _Responsibilities(nn.Module):
    """p(component | x_t) of the K components: x_t (B, C, F, H, W) and log weights (B, K) to
    (B, K, F, H, W)."""

    means: Tensor

    def __init__(self, means: Tensor, std: float) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.variance = std**2

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, log_weights: Tensor) -> Tensor:
        centres = alpha[:, None] * self.means[..., None, None, None]
        # The expansion |x|² − 2x·μ + |μ|² would lose precision by cancellation in float32.
        distance = (x[:, None] - centres).square().sum(2)
        variance = (alpha**2 * self.variance + sigma**2).reshape(-1, 1, 1, 1, 1)
        return torch.softmax(log_weights[:, :, None, None, None] - distance / (2 * variance), 1)


class _PosteriorMean(nn.Module):
    """E[x0 | x_t] from x_t and `centre`, the mean of the components' means weighted by the
    responsibilities. All are (B, C, F, H, W)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.variance = std**2

    def forward(self, x: Tensor, centre: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        total = alpha**2 * self.variance + sigma**2
        return (sigma**2 * centre + alpha * self.variance * x) / total


class _TemporalAttention(nn.Module):
    """Attention over the frames at every position, (B, C, F, H, W) to the same shape.

    The values are the difference between the projected and the original input, and all projections
    are the identity. So the output is zero, and the mixture is exact, until an adapter changes a
    projection.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )
        for layer in (self.to_q, self.to_k, self.to_v, self.to_out):
            nn.init.eye_(layer.weight)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        sizes = {"b": x.shape[0], "h": x.shape[3]}
        tokens = rearrange(x, "b c f h w -> (b h w) f c")
        scores = self.to_q(tokens) @ self.to_k(tokens).mT / x.shape[1] ** 0.5
        out = self.to_out(scores.softmax(-1) @ (self.to_v(tokens) - tokens))
        return rearrange(out, "(b h w) f c -> b c f h w", **sizes)


class _Network(nn.Module):
    """The exact prediction of the mixture. It does not divide by alpha or sigma, which may be 0."""

    def __init__(self, means: Tensor, std: float, prediction: Prediction) -> None:
        super().__init__()
        self.responsibilities = _Responsibilities(means, std)
        self.posterior_mean = _PosteriorMean(std)
        self.across_frames = _TemporalAttention(means.shape[1])
        self.variance, self.prediction = std**2, prediction

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, log_weights: Tensor) -> Tensor:
        x = x + self.across_frames(x)
        weights = self.responsibilities(x, alpha, sigma, log_weights)
        centre = einsum(weights, self.responsibilities.means, "b k f h w, k c -> b c f h w")
        x0 = self.posterior_mean(x, centre, alpha, sigma)
        eps = sigma * (x - alpha * centre) / (alpha**2 * self.variance + sigma**2)
        if self.prediction == "epsilon":
            return eps
        return alpha * eps - sigma * x0 if self.prediction == "v_prediction" else eps - x0


def _channels_last(output: Tensor, frames: int) -> Tensor:
    return rearrange(output, "b c f h w -> b f h w c")


# The network has no attention layer to read, so the responsibilities of the components serve as
# queries and keys.
_ROLES = {
    "motion": (Tap("posterior_mean", _channels_last),),
    **dict.fromkeys(
        ("keys", "queries", "temporal_queries", "temporal_keys"),
        (Tap("responsibilities", _channels_last),),
    ),
}
_PROJECTIONS = Attention(*(f"across_frames.{name}" for name in ("to_q", "to_k", "to_v", "to_out")))
_TRANSFORMERS = dict.fromkeys(
    ("temporal_transformers", "all_temporal_transformers"),
    (Transformer("across_frames", (_PROJECTIONS,)),),
)


@final
class Gaussian(Backbone):
    """The mixture of K Gaussians N(means[k], std²·I) at every position, with means (K, 3), for any
    schedule. Raises `BadModel` for other means or a std that is not above 0."""

    def __init__(
        self,
        means: Tensor,
        std: float,
        schedule: Schedule,
        device: torch.device | str = "cpu",
        settings: Settings = _SETTINGS,
    ) -> None:
        if means.ndim != 2 or means.shape[1] != 3 or not std > 0:
            raise BadModel(
                f"a mixture needs means (K, 3) and a std above 0, got means {tuple(means.shape)} "
                f"and std {std}"
            )
        means = means.to(torch.float32)
        # The network's time divided by the schedule's time: 1000 for flows, 1 for the others.
        self._unit = float(schedule.network_time(torch.ones((), dtype=torch.float64)))
        self._components = len(means)
        identity = repr((float(std), type(schedule).__name__, schedule.prediction))
        content = means.cpu().numpy().tobytes() + identity.encode()
        super().__init__(
            settings,
            name="gaussian",
            network=_Network(means, std, schedule.prediction).to(device),
            schedule=schedule,
            defaults=_DEFAULTS,
            layout=LatentLayout(channels=3),
            device=torch.device(device),
            roles=_ROLES,
            transformers=_TRANSFORMERS,
            fingerprint=hashlib.sha256(content).hexdigest()[:16],
        )

    def encode(self, video: Tensor) -> Tensor:
        return video.to(device=self.device, dtype=torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        """The log weights of the components as `text`, (B, 1, K). The empty prompt gives equal
        weights."""
        rows = [self._log_weights(prompt) for prompt in prompts]
        return Conditioning(text=torch.stack(rows)[:, None].to(self.device))

    def check_prompt(self, prompt: str) -> list[str]:
        return []

    def predict(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        time = t.to(torch.float64) / self._unit
        alpha, sigma = self.schedule.alpha(time), self.schedule.sigma(time)
        x = x.to(torch.float32)
        levels = (per_sample(level.reshape(-1), x) for level in (alpha, sigma))
        return self.network(x, *levels, conditioning.text[:, 0])

    def _log_weights(self, prompt: str) -> Tensor:
        """The log weights (K,), drawn with the hash of the prompt as the seed. They are uneven, so
        that guidance has a direction."""
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big")
        logits = torch.randn(self._components, generator=torch.Generator().manual_seed(seed))
        return torch.log_softmax(2 * logits * (prompt != ""), 0)


def load(source: str, settings: Settings) -> Backbone:
    """Create the model named "gaussian". `device=auto` selects the CPU, because a GPU would not be
    faster. Raises `BadModel` for another source, and `BadCall` for a LoRA or another dtype than
    float32."""
    if source != "gaussian":
        raise BadModel(f"{source!r} is no Gaussian mixture; the only mixture is named gaussian")
    if settings.dtype not in ("auto", "float32"):
        raise BadCall(f"`dtype={settings.dtype}` does not apply; gaussian is exact in float32 only")
    if settings.lora:
        raise BadCall("`lora` does not apply; gaussian has no weights")
    name = "cpu" if settings.device == "auto" else settings.device
    return _four_colours(usable_device(name), settings)


def tiny() -> Backbone:
    """The same mixture as `load` creates, on the CPU."""
    return _four_colours(torch.device("cpu"), _SETTINGS)


def _four_colours(device: torch.device, settings: Settings) -> Gaussian:
    """Four components, whose colours are in [-0.9, 0.9], with a flow. A flow's grid starts at a
    level without signal."""
    means = 1.8 * torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) - 0.9
    return Gaussian(means, 0.25, Flow(), device, settings)
