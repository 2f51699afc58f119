"""The loss of a denoiser in training: what a step sees of the clips, and what counts how much.

This module refuses to know how clips are made and how the loss is minimised.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from recast.worlds.training import close_up, noising
from recast.worlds.training.config import TrainConfig
from recast.worlds.training.dataset import Dataset
from recast.worlds.training.loop import Loss, autocast
from recast.worlds.training.model import Model, text_encoder
from recast.worlds.training.networks import Design
from recast.worlds.training.part_reader import PartReader, part_error
from recast.worlds.training.speed import plain_attention

_FOCUS = 3.0
"""How much more often the clips of a subject in `TrainConfig.focus` are drawn."""


@dataclass(frozen=True, slots=True)
class Clips:
    """The clips of the denoiser's training."""

    latents: Tensor
    """(N, C, F, h, w), scaled."""
    subjects: Tensor | None
    """The fraction of each latent position that the subject covers, (N, F, h, w)."""
    parts: Tensor | None
    """The same for each part of the subject, times 255, (N, F, P, h, w)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a step sees of the clips."""

    frames: int
    clips: int
    """Clips of a batch."""
    close_up: bool = False
    """See only a window around the subject, in place of whole frames."""

    def design(self, design: Design) -> Design:
        """The design with the times of this view. Details, such as the pose of a leg, are decided
        at low noise, so the times of a window are not shifted to high noise."""
        return replace(design, shift=1.0) if self.close_up else design


@dataclass(frozen=True, slots=True)
class _Excerpt:
    """What a batch shows before noise is added."""

    x0: Tensor
    """(B, C, F, h, w)."""
    cover: Tensor
    """The fraction that the subject covers, (B, 1, F, h, w)."""
    maps: Tensor | None
    """The same for each part, times 255, (B, P, F, h, w)."""
    positions: AbstractContextManager[None]
    """The network runs inside this context."""


class DenoiserLosses:
    """The losses of a denoiser on clips. With maps of parts, the network is a `PartReader`."""

    def __init__(self, config: TrainConfig, model: Model, clips: Clips) -> None:
        self._config, self._model, self._clips = config, model, clips
        self._encode_text = text_encoder(model.clip).to(config.device)
        dataset = model.dataset
        self._scenes = [dataset.sample(seed) for seed in range(len(clips.latents))]
        self._probabilities = _probabilities(dataset, self._scenes, config.focus)
        is_transformer = config.network == "transformer"
        self._add_noise = noising.flow if is_transformer else noising.diffusion
        on_cpu = torch.device(config.device).type == "cpu"
        self._attention = plain_attention if on_cpu and is_transformer else nullcontext

    def mixed(self, main: View, others: Mapping[View, float]) -> Loss:
        """The loss of each step is that of one of the other views, with the probability given, and
        else that of the main one."""
        losses = [(probability, self.of(view)) for view, probability in others.items()]
        usual = self.of(main)
        if not any(others.values()):
            return usual

        def loss(denoiser: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
            chosen = rng.random()
            for probability, other in losses:
                if chosen < probability:
                    return other(denoiser, step, rng)
                chosen -= probability
            return usual(denoiser, step, rng)

        return loss

    def of(self, view: View) -> Loss:
        """The loss of steps that see this of the clips."""

        def loss(denoiser: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
            return self._loss(view, denoiser, rng)

        return loss

    def _loss(self, view: View, denoiser: nn.Module, rng: np.random.Generator) -> Tensor:
        config, device = self._config, self._config.device
        count = len(self._clips.latents)
        if self._probabilities is None:
            pick = rng.integers(0, count, view.clips)
        else:
            pick = rng.choice(count, view.clips, p=self._probabilities)
        shown = self._excerpt(view, denoiser, pick, rng)
        condition = self._condition(pick, rng)
        noised = self._add_noise(view.design(self._model.design), shown.x0, rng)
        weight = 1 + config.subject * shown.cover
        if config.first_frame and view.frames > 1 and rng.random() < config.first_frame:
            noised = noising.with_clean_first_frame(noised, shown.x0)
            weight[:, :, 0] = 0
        x, target, t = (part.to(device) for part in noised)
        weight = (weight / weight.mean()).to(device)
        with autocast(device), self._attention(), shown.positions:
            # The transformer returns the output alone, and a `PartReader` the parts as well.
            output, *logits = denoiser(x, t, condition, return_dict=False)
        error = (weight * (output.float() - target).square()).mean()
        if shown.maps is None:
            return error
        maps = shown.maps.to(device).float() / 255
        return error + config.parts * part_error(logits[0], maps, weight)

    def _excerpt(
        self, view: View, denoiser: Any, pick: np.ndarray, rng: np.random.Generator
    ) -> _Excerpt:
        clips, dataset = self._clips, self._model.dataset
        first = rng.integers(0, dataset.frames - view.frames + 1)
        window = slice(first, first + view.frames)
        x0 = clips.latents[pick, :, window].float()
        cover = torch.zeros_like(x0[:, :1])
        if clips.subjects is not None:
            cover = clips.subjects[pick, None, window].float()
        if dataset.reversible and rng.random() < 0.5:
            x0, cover = x0.flip(2), cover.flip(2)
        maps = None
        if clips.parts is not None:
            maps = rearrange(clips.parts[pick, window], "b f p h w -> b p f h w")
        if not view.close_up:
            return _Excerpt(x0, cover, maps, nullcontext())
        network = denoiser.transformer if isinstance(denoiser, PartReader) else denoiser
        patch = network.config.patch_size[-1]
        corner = close_up.corners(cover[:, 0], patch, rng)
        positions = close_up.real_positions(network, corner, (x0.shape[-2], x0.shape[-1]))
        if maps is not None:
            maps = close_up.cut(maps, corner, patch)
        x0, cover = (close_up.cut(x, corner, patch) for x in (x0, cover))
        return _Excerpt(x0, cover, maps, positions)

    @torch.no_grad()
    def _condition(self, pick: np.ndarray, rng: np.random.Generator) -> Tensor:
        """The text features of a caption for each scene, (B, L, C)."""
        caption = self._model.dataset.caption
        texts = [_drop_caption(caption(self._scenes[i], rng), rng) for i in pick]
        tokens = self._model.tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        )
        ids = tokens.input_ids.to(self._config.device)
        features: Tensor = self._encode_text(ids).last_hidden_state
        return features


def _probabilities(
    dataset: Dataset, scenes: Sequence[Any], focus: Sequence[str]
) -> NDArray[np.float64] | None:
    """The probability of each scene in a batch; None if all are equal."""
    if not focus:
        return None
    names = [dataset.subject_names[dataset.attributes(scene)[0]] for scene in scenes]
    weights = np.where(np.isin(names, focus), _FOCUS, 1.0)
    return weights / weights.sum()


def _drop_caption(text: str, rng: np.random.Generator) -> str:
    """Sometimes an empty caption, for classifier-free guidance (Ho and Salimans 2022)."""
    return "" if rng.random() < 0.1 else text
