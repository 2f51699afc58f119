"""ControlVideo: frames of an image model that follow structure maps and attend to one another.

Zhang, Wei, Jiang, Zhang, Zuo, Tian: "ControlVideo: Training-free Controllable Text-to-Video
Generation", ICLR 2024. A ControlNet reads a structure map of each frame, and nothing else of the
source is used. Self-attention looks across frames (section 3.3), and at two steps every other frame
of the clean estimate is interpolated between its neighbours (section 3.2, algorithm 1). A long clip
is sampled in two passes at each level: its key frames together, and then the frames between each
pair of them.

Owns the three parts of the paper. Knows no model. The frames in the middle are interpolated by
optical flow (`media.interpolation`), where the authors use the network RIFE, whose weights Recast
does not have.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple, final

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from recast.backbones.base import Backbone
from recast.diffusion.noise_schedule import Denoised, Denoiser
from recast.diffusion.sampling import randn
from recast.events import Event, Note, job
from recast.feature_guidance.levels import count_steps
from recast.feature_guidance.sampling_loop import sample_with_events
from recast.media.interpolation import Image, middle_frame
from recast.motions.method import (
    Sampling,
    SamplingDefaults,
    check_at_least,
    check_fraction,
    check_setting,
)
from recast.motions.motion import Motion
from recast.motions.size_method import SizeMethod
from recast.networks.feature_hooks import attend_across_frames

_ROLE = "self_attention"
_NO_MAPS = (
    "there are no structure maps, so nothing of the clip is used but its length and size; give a "
    "ControlNet in `control_net`, and `control` or `control_model`"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SamplingDefaults):
    """The settings of ControlVideo."""

    control_scale: float = 1.0
    """The weight of what the ControlNet computes from the structure maps. With less, the result
    follows the prompt more and the structure less."""
    smooth_from: float = 0.36
    """Fraction of the sampling steps that are taken before the frames are smoothed."""
    smooth_steps: int = 2
    """Number of consecutive steps at which frames are smoothed. At the first one frames 1, 3, 5 and
    so on are interpolated between their neighbours, at the next one frames 2, 4, 6 and so on, and
    so forth. 0 turns smoothing off."""
    smooth_ends: bool = False
    """Also replace the first and the last frame, when it is their turn, by the middle between them
    and their only neighbour, as the released code does."""
    short_clip: int = 0
    """Number of frames from one key frame to the next, both included, in the sampler for long
    clips. 0 turns it off: all frames attend to all, which takes long for long clips."""
    references: Literal["key_frames", "released"] = "key_frames"
    """The frames to which the frames between two key frames attend: key_frames are these two;
    released are the first key frame and the last frame before the second one, as in the released
    code."""
    prompt_suffix: str = ""
    """Text that is added at the end of the prompt."""
    negative_prompt: str = ""
    """The negative prompt, if the call gives none."""

    def __post_init__(self) -> None:
        SamplingDefaults.__post_init__(self)
        check_at_least(self, 0, "control_scale", "smooth_steps")
        check_fraction(self, "smooth_from")
        valid = self.short_clip == 0 or self.short_clip >= 3
        check_setting("short_clip", self.short_clip, valid, "0 or at least 3")


_PAPER = Config(steps=50)
_REFERENCE = Config(
    steps=50,
    guidance_scale=12.5,
    smooth_from=0.6,
    smooth_ends=True,
    references="released",
    prompt_suffix=" ,best quality, extremely detailed, HD, ultra-realistic, 8K, HQ, masterpiece, "
    "trending on artstation, art, smooth",
    negative_prompt="longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer "
    "difits, cropped, worst quality, low quality, deformed body, bloated, ugly, unrealistic",
)
PRESETS = {
    "paper": _PAPER,
    "reference": _REFERENCE,
    # Clips of about 100 frames; the released code takes the root of the number of frames.
    "paper-long": replace(_PAPER, short_clip=10),
    "reference-long": replace(_REFERENCE, short_clip=10),
    # With more guidance the ControlNet that ships for this model breaks its colours.
    "shapes@frames": Config(guidance_scale=2.0),
}


class Part(NamedTuple):
    """Frames that pass through the network together."""

    frames: tuple[int, ...]
    """The indices of all frames that pass."""
    results: slice
    """Those of them whose estimates are used."""
    references: tuple[int, ...] | None
    """The frames, counted within the part, to which all attend; None for all."""


@final
class Method(SizeMethod[Config]):
    """Sample frames that follow the motion's structure maps. Without maps the method runs too, and
    a note says that nothing of the motion is used."""

    name = "controlvideo"
    takes_structure = True

    @property
    def roles(self) -> tuple[str, ...]:
        return (_ROLE,)

    def format_prompts(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        config = self.config
        return prompt + config.prompt_suffix, negative_prompt or config.negative_prompt

    @job
    def transfer(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling
    ) -> Generator[Event, None, Tensor]:
        """Sample all frames from the same noise."""
        batch, channels, frames, *size = self.latent_shape(backbone, motion)
        if motion.structure is None:
            yield Note(text=_NO_MAPS)
        generator = torch.Generator().manual_seed(sampling.seed)
        noise = randn((batch, channels, 1, *size), generator, backbone.device)
        x = repeat(noise, "b c 1 h w -> b c f h w", f=frames)
        schedule = backbone.schedule.sized(x.shape)
        first = count_steps(self.config.smooth_from, sampling)
        times = schedule.grid(sampling.steps)[:-1][first : first + self.config.smooth_steps]
        denoise = self._across_frames(backbone, motion, prompt, sampling, frames)
        denoise = smoothed(backbone, denoise, times.tolist(), ends=self.config.smooth_ends)
        return (yield from sample_with_events(backbone, denoise, x, sampling))

    def _across_frames(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling, frames: int
    ) -> Denoiser:
        """The denoiser of all frames, in which self-attention looks across frames."""
        parts = parts_of(frames, self.config.short_clip, self.config.references)
        denoisers = [self._part(backbone, motion, prompt, sampling, part) for part in parts]

        def denoise(x: Tensor, t: Tensor) -> Denoised:
            x0, eps = torch.empty_like(x), torch.empty_like(x)
            for part, denoiser in zip(parts, denoisers, strict=True):
                out, chosen = denoiser(x[:, :, part.frames], t), part.frames[part.results]
                x0[:, :, chosen] = out.x0[:, :, part.results]
                eps[:, :, chosen] = out.eps[:, :, part.results]
            return Denoised(x0, eps)

        return denoise

    def _part(
        self, backbone: Backbone, motion: Motion, prompt: str, sampling: Sampling, part: Part
    ) -> Denoiser:
        """The denoiser of the frames of a part."""
        maps, taps = motion.structure, backbone.taps(_ROLE)
        prompt, negative_prompt = self.format_prompts(prompt, sampling.negative_prompt)
        denoise = backbone.cfg_denoiser(
            prompt,
            negative_prompt,
            sampling.guidance_scale,
            structure=None if maps is None else maps[:, :, part.frames],
            structure_scale=self.config.control_scale,
        )

        def across(x: Tensor, t: Tensor) -> Denoised:
            with attend_across_frames(backbone.network, taps, len(part.frames), part.references):
                return denoise(x, t)

        return across


def parts_of(frames: int, short_clip: int, references: str) -> list[Part]:
    """The parts of a clip in the order in which they pass through the network: all frames; or the
    key frames, and then with each pair of key frames the frames between them."""
    if not short_clip:
        return [Part(tuple(range(frames)), slice(None), None)]
    keys = sorted({*range(0, frames, short_clip - 1), frames - 1})
    parts = [Part(tuple(keys), slice(None), None)]
    for first, last in pairwise(keys):
        between = range(first + 1, last)
        seen = (0, 1) if references == "key_frames" else (0, len(between) + 1)
        if between:
            parts.append(Part((first, last, *between), slice(2, None), seen))
    return parts


def smoothed(
    backbone: Backbone, denoise: Denoiser, times: Sequence[float], *, ends: bool
) -> Denoiser:
    """A denoiser whose clean estimates at these times are decoded, smoothed and encoded again, at
    the first time in the frames with odd indices, and so on by turns (algorithm 1)."""

    def smooth(x: Tensor, t: Tensor) -> Denoised:
        out = denoise(x, t)
        if float(t) not in times:
            return out
        levels = rearrange((backbone.decode(out.x0) + 1) * 127.5, "1 c f h w -> f h w c")
        start = 1 - times.index(float(t)) % 2
        frames = torch.from_numpy(interleaved(levels.cpu().numpy(), start=start, ends=ends))
        pixels = rearrange(frames / 127.5 - 1, "f h w c -> 1 c f h w")
        return Denoised(backbone.encode(pixels.to(backbone.device)), out.eps)

    return smooth


def interleaved(frames: Image, *, start: int, ends: bool) -> Image:
    """Frames (F, H, W, 3) in [0, 255], of which every other one is replaced by the middle between
    its neighbours, beginning with frame `start`, 0 or 1.

    The first and the last frame have one neighbour. They stay; but with `ends`, and with `start` 0,
    they are replaced by the middle between them and their neighbour.
    """
    replaced, last = frames.copy(), len(frames) - 1
    for index in range(start, len(frames), 2):
        if 0 < index < last or (ends and start == 0 and last):
            before, after = frames[max(index - 1, 0)], frames[min(index + 1, last)]
            replaced[index] = middle_frame(before, after)
    return np.asarray(replaced)
