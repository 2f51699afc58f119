"""DiTFlow: where attention across frames says that things go, as guidance.

Pondaven, Siarohin, Tulyakov, Torr, Pizzati: "Video Motion Transfer with Diffusion Transformers",
CVPR 2025. Queries of one frame against keys of another give each position a displacement: to the
strongest match in the source (argmax), to the mean of the matches in the sample, so that gradients
flow. At the first levels x_t is optimised until its displacements are the source's, where those are
not zero. The source is seen clean, as in the authors' code; they compare queries and keys after the
rotary embedding, and here it depends on the backbone's roles. Not here: optimised position
embeddings.

Made for transformers, whose attention spans all frames. In a UNet queries and keys meet within a
frame only; across frames they are compared all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import mse_loss

from recast import guided
from recast.backbones.base import Backbone
from recast.events import Done, Event
from recast.features import Tap, override, unrolled
from recast.methods import base
from recast.methods.base import check_setting
from recast.optimize import minimize
from recast.sampling import randn
from recast.schedule import Denoiser


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """DiTFlow's settings."""

    queries: str = "queries"
    """Role of the queries."""
    keys: str = "keys"
    """Role of the keys, one place for each of the queries'."""
    places: tuple[int, ...] = ()
    """Which places of these roles are guided, counted from 0; empty is all. Their losses are
    averaged."""
    temperature: float = 2.0
    """What attention's logits are multiplied by."""
    level: float = 0.0
    """Share of the noise at which the source's displacements are read: 0 is clean."""
    guided: float = 0.2
    """Share of the levels, from the noisiest, at which x_t is optimised; 0 is no optimisation."""
    inner_steps: int = 5
    """Optimisation steps at each guided level, with a fresh Adam."""
    lr: float = 0.002
    """Adam's learning rate at the first guided level."""
    lr_end: float = 0.001
    """Adam's learning rate at the last guided level; between them it changes linearly."""
    injected: tuple[str, ...] = ()
    """Roles that are the noised source's at guided levels, such as keys and values."""
    injected_places: tuple[int, ...] = ()
    """At which of their places, counted from 0; empty is all."""

    def __post_init__(self) -> None:
        check_setting("temperature", self.temperature, self.temperature > 0, "above 0")
        check_setting("level", self.level, 0 <= self.level <= 1, "between 0 and 1")
        check_setting("guided", self.guided, 0 <= self.guided <= 1, "between 0 and 1")
        check_setting("inner_steps", self.inner_steps, self.inner_steps >= 1, "at least 1")
        check_setting("lr", self.lr, self.lr > 0, "above 0")
        check_setting("lr_end", self.lr_end, self.lr_end >= 0, "at least 0")


PRESETS = {
    "fast": Config(guided=0.6, inner_steps=10, lr=0.04, lr_end=0.02),
    # CogVideoX-5B's roles: block 20 of its 42 is guided, and block 0 injected; 2B guides block 15.
    "paper": Config(queries="queries20", keys="keys20", injected=("keys0", "values0")),
}
_LEARNED = ("queries", "keys", "places", "temperature", "level")


def flow(
    queries: Tensor, keys: Tensor, heads: int, temperature: float, *, strongest: bool
) -> Tensor:
    """Attention motion flow: the displacement of every position of frame i to its match in frame
    j, in positions to the right and down; features (1, F, H, W, C) to (F, F, H·W, 2).

    The match is the strongest, or, with gradients, the mean of all by their attention.
    """
    frames, height, width, channels = queries.shape[1:]
    q, k = (rearrange(x.float(), "1 f h w c -> f (h w) c") for x in (queries, keys))
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([right.flatten(), down.flatten()], -1).to(q)
    # The mean over heads of q·k/√d, where the heads lie side by side in C.
    scale = temperature / (heads * (channels / heads) ** 0.5)
    matches = []
    for frame in range(frames):
        logits = scale * (q[frame] @ k.mT)  # (F, H·W, H·W)
        matches.append(at[logits.argmax(-1)] if strongest else logits.softmax(-1) @ at)
    return torch.stack(matches) - at


def where_moving(found: Tensor, source: Tensor) -> Tensor:
    """The mean squared error of displacements (…, 2) where the source's is not zero; of all of
    them where the source stands still everywhere."""
    moving = source.square().sum(-1) > 0
    if not bool(moving.any()):
        return mse_loss(found, source)
    return mse_loss(found[moving], source[moving])


@final
class Method(base.Method[Config]):
    """Learn once per clip, transfer for many prompts and any number of steps."""

    name = "ditflow"

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.config.queries, self.config.keys, *self.config.injected)))

    def learned_settings(self) -> Mapping[str, Any]:
        return guided.settings(self.config, _LEARNED)

    def learn(
        self, backbone: Backbone, video: Tensor, prompt: str, sampling: base.Sampling
    ) -> Iterator[Event]:
        """One pass. The motion holds the clip's "latents", (C, F, H, W), and for the n-th guided
        place its displacements as "n/flow", (F, F, H·W, 2)."""
        x = backbone.encode(video)
        t = guided.level(backbone.schedule.sized(x.shape), self.config.level)
        plain = backbone.denoiser(backbone.encode_text([prompt]))
        flows = self._flows(backbone, plain, guided.noised(backbone, x, t), t, strongest=True)
        tensors = {f"{number}/flow": found for number, found in enumerate(flows)}
        tensors["latents"] = x[0]
        yield Done(result=guided.taught(self, backbone, tensors, prompt, sampling, [float(t)]))

    def transfer(
        self, backbone: Backbone, motion: base.Motion, prompt: str, sampling: base.Sampling
    ) -> Iterator[Event]:
        """Sample from random noise with guidance by the displacements."""
        self._check(backbone, motion)
        source = motion.tensors["latents"][None].to(backbone.device)
        generator = torch.Generator().manual_seed(sampling.seed)
        x = randn(tuple(source.shape), generator, backbone.device)
        taps = guided.places(backbone, self.config.injected, self.config.injected_places)
        plain, start = backbone.denoiser(backbone.encode_text([prompt])), x
        count = round(self.config.guided * sampling.steps)
        grid = backbone.schedule.sized(x.shape).grid(sampling.steps)
        early = {float(t) for t in grid[:count]}
        seen: dict[float, Mapping[str, Tensor]] = {}

        def injected(t: Tensor) -> Mapping[str, Tensor] | None:
            if not taps or float(t) not in early:
                return None
            if float(t) not in seen:
                seen.clear()  # one level's at a time
                there = backbone.schedule.noised(source, start, t)
                seen[float(t)] = guided.look(backbone, plain, taps, there, t)
            return seen[float(t)]

        denoise = backbone.guided(prompt, sampling.negative_prompt, sampling.guidance_scale)
        change = self._change(backbone, motion, plain, count, taps, injected)
        history: dict[int, list[float]] = {}
        latents = yield from guided.sampled(
            backbone,
            guided.injecting(backbone, denoise, taps, injected),
            x,
            sampling,
            edit=guided.early(count, sampling.steps, change, history),
            history=history,
        )
        yield Done(result=latents)

    def _change(
        self,
        backbone: Backbone,
        motion: base.Motion,
        plain: Denoiser,
        count: int,
        taps: tuple[Tap, ...],
        injected: Callable[[Tensor], Mapping[str, Tensor] | None],
    ) -> guided.Change:
        config = self.config
        wanted = [
            motion.tensors[f"{number}/flow"].to(backbone.device)
            for number in range(len(self._pairs(backbone)))
        ]

        def change(x: Tensor, t: Tensor, index: int) -> tuple[Tensor, list[float]]:
            def loss(x: Tensor) -> Tensor:
                flows = self._flows(backbone, plain, x, t, strongest=False)
                terms = [where_moving(a, b) for a, b in zip(flows, wanted, strict=True)]
                return torch.stack(terms).mean()

            lr = guided.between(config.lr, config.lr_end, index, count)
            with ExitStack() as stack:
                if found := injected(t):
                    stack.enter_context(override(backbone.network, taps, found, x.shape[2]))
                return minimize(loss, x, [lr] * config.inner_steps)

        return change

    def _flows(
        self, backbone: Backbone, denoise: Denoiser, x: Tensor, t: Tensor, *, strongest: bool
    ) -> list[Tensor]:
        """(F, F, H·W, 2) of every guided place."""
        pairs = self._pairs(backbone)
        seen = guided.look(backbone, denoise, list(chain(*pairs)), x, t)
        grids = {path: unrolled(found, *x.shape[-2:]) for path, found in seen.items()}
        temperature = self.config.temperature
        return [
            flow(grids[q.path], grids[k.path], q.heads, temperature, strongest=strongest)
            for q, k in pairs
        ]

    def _pairs(self, backbone: Backbone) -> list[tuple[Tap, Tap]]:
        config = self.config
        return guided.pairs(backbone, config.queries, config.keys, config.places)

    def _check(self, backbone: Backbone, motion: base.Motion) -> None:
        motion.check_made_for(backbone, self.name)
        guided.check_settings(motion, self.learned_settings())
        numbers = range(len(self._pairs(backbone)))
        motion.check_holds("latents", *(f"{number}/flow" for number in numbers))
