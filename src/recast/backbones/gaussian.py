"""An exact model of a known distribution: every position of a clip is drawn from one mixture.

Nothing is learned and nothing is approximated, so any error of a sampler, an inversion or a method
is its own: the tests fit orders of convergence on this model. Pixels are the latents, and a prompt
chooses the weights of the components. It imports no network library.
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
PIPELINES: frozenset[str] = frozenset()
_DEFAULTS = Defaults(frames=8, height=16, width=16, fps=8.0, steps=20, guidance_scale=3.0)
_SETTINGS = Settings(device="cpu")


class _Responsibilities(nn.Module):
    """p(component | x_t): x (B, C, F, H, W), log weights (B, K) -> (B, K, F, H, W)."""

    means: Tensor

    def __init__(self, means: Tensor, std: float) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.variance = std**2

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, log_weights: Tensor) -> Tensor:
        centres = alpha[:, None] * self.means[..., None, None, None]
        # The difference first, then the square: |x|² − 2x·μ + |μ|² would cancel in float32.
        distance = (x[:, None] - centres).square().sum(2)
        spread = (alpha**2 * self.variance + sigma**2).reshape(-1, 1, 1, 1, 1)
        return torch.softmax(log_weights[:, :, None, None, None] - distance / (2 * spread), 1)


class _PosteriorMean(nn.Module):
    """E[x0 | x_t] from the mean of the components' means, `centre`, all (B, C, F, H, W)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.variance = std**2

    def forward(self, x: Tensor, centre: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        total = alpha**2 * self.variance + sigma**2
        return (sigma**2 * centre + alpha * self.variance * x) / total


class _AcrossFrames(nn.Module):
    """Attention of every position over its own frames, (B, C, F, H, W) to the same shape.

    A value is the difference that its projection makes, and the projections are the identity. So
    the output is zero and the mixture exact, until an adapter changes a projection.
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
    """The exact prediction of the mixture. It never divides by alpha or sigma: both may be 0."""

    def __init__(self, means: Tensor, std: float, prediction: Prediction) -> None:
        super().__init__()
        self.responsibilities = _Responsibilities(means, std)
        self.posterior_mean = _PosteriorMean(std)
        self.across_frames = _AcrossFrames(means.shape[1])
        self.variance, self.prediction = std**2, prediction

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, log_weights: Tensor) -> Tensor:
        x = x + self.across_frames(x)
        share = self.responsibilities(x, alpha, sigma, log_weights)
        centre = einsum(share, self.responsibilities.means, "b k f h w, k c -> b c f h w")
        x0 = self.posterior_mean(x, centre, alpha, sigma)
        eps = sigma * (x - alpha * centre) / (alpha**2 * self.variance + sigma**2)
        if self.prediction == "epsilon":
            return eps
        return alpha * eps - sigma * x0 if self.prediction == "v_prediction" else eps - x0


def _channels_last(output: Tensor, frames: int) -> Tensor:
    return rearrange(output, "b c f h w -> b f h w c")


# The network has no attention to read; the components' responsibilities take these roles.
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
    """The mixture of N(means[k], std²·I) at every position, means (K, 3), for any schedule."""

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
                f"means {tuple(means.shape)} with std {std}; a mixture needs means (K, 3) and a "
                "std above 0"
            )
        means = means.to(torch.float32)
        # The network's unit of time in the schedule's: 1000 for flows, 1 for the others.
        self._unit = float(schedule.network_time(torch.ones((), dtype=torch.float64)))
        self._components = len(means)
        identity = repr((float(std), type(schedule).__name__, schedule.prediction))
        weights = means.cpu().numpy().tobytes() + identity.encode()
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
            fingerprint=hashlib.sha256(weights).hexdigest()[:16],
        )

    def encode(self, video: Tensor) -> Tensor:
        return video.to(device=self.device, dtype=torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)

    def encode_text(self, prompts: list[str]) -> Conditioning:
        """The logarithms of the components' weights, (B, 1, K); equal for the empty prompt."""
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
        """(K,) from the hash of the prompt, uneven enough that guidance has a direction."""
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big")
        logits = torch.randn(self._components, generator=torch.Generator().manual_seed(seed))
        return torch.log_softmax(2 * logits * (prompt != ""), 0)


def load(source: str, settings: Settings) -> Backbone:
    """Load the only mixture there is; `source` is "gaussian". auto is the CPU: a GPU would not be
    faster. Raises `BadModel` for another source and `BadCall` for settings that do not apply."""
    if source != "gaussian":
        raise BadModel(f"{source!r} is no Gaussian mixture; the only one is called gaussian")
    if settings.dtype not in ("auto", "float32"):
        raise BadCall(f"`dtype={settings.dtype}` does not apply; gaussian is exact in float32 only")
    name = "cpu" if settings.device == "auto" else settings.device
    return _four_colours(usable_device(name), settings)


def tiny() -> Backbone:
    """The same mixture, on the CPU."""
    return _four_colours(torch.device("cpu"), _SETTINGS)


def _four_colours(device: torch.device, settings: Settings) -> Gaussian:
    """Four colours within [-0.9, 0.9], and a flow, whose grid begins without any signal."""
    means = 1.8 * torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) - 0.9
    return Gaussian(means, 0.25, Flow(), device, settings)
