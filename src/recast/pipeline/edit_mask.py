"""The edit mask: the region in which a result may differ from its source.

This module owns reading a mask that the user gives, and computing one from the model's
cross-attention (`mask=auto`): the region of the source that attends to the words that change. Using
cross-attention as a mask follows Hertz et al., "Prompt-to-Prompt image editing with cross attention
control" (ICLR 2023). The module refuses to know how a method uses the mask.
"""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from recast.backbones.base import Backbone
from recast.diffusion.sampling import randn
from recast.errors import BadCall, BadClip
from recast.media import video as videos
from recast.media.video import Video
from recast.motions.method import MotionMethod
from recast.motions.motion import Motion
from recast.pipeline import requirements

AUTO = "auto"
_MARKS = ".,;:!?"
_ARTICLES = {"a", "an", "the", "this", "that", "its", "his", "her", "their"}
_POSITIONS = {"in", "on", "at", "by", "near", "over", "under", "above", "below", "behind", "before"}
_DIRECTIONS = {
    "from",
    "to",
    "of",
    "into",
    "onto",
    "through",
    "across",
    "along",
    "around",
    "up",
    "down",
}
_LINKS = {"and", "or", "but", "as", "with", "without", "while", "is", "are", "was", "were"}
_SEPARATORS = _ARTICLES | _POSITIONS | _DIRECTIONS | _LINKS
"""Words that separate phrases."""
_LEVELS = (0.1, 0.2, 0.3)
"""Noise levels at which attention is measured. They are low, and were tuned on the shapes world
(docs/log/dreammotion.md), as was the threshold."""
_THRESHOLD = 0.5
"""Fraction of the range of the attention above which a position belongs to the region."""
_GRID = 100
"""Number of steps of the grid from which the times of `_LEVELS` are taken."""
_DIMMED = 0.3
"""Brightness outside the mask in `overlay`."""


def check(mask: str, method: MotionMethod[Any], source_prompt: str) -> None:
    """Check a mask before a model is loaded.

    Raises `BadCall` if the method takes no mask, for a bad box, and for "auto" without a source
    prompt; `BadClip` for a file that cannot be read.
    """
    requirements.check_takes_mask(method)
    if mask == AUTO:
        if not source_prompt.strip():
            raise BadCall(
                "`mask=auto` compares the prompt with that of the source, so it needs "
                "`source_prompt`"
            )
    elif _box(mask) is None:
        videos.read(Path(mask), frames=1)


def resolve(
    mask: str, backbone: Backbone, motion: Motion, prompt: str, seed: int
) -> NDArray[np.bool_]:
    """The mask (F, H, W) of a motion's clip, true where the clip may change.

    `mask` is "auto" or what `read` takes. Raises `BadCall`, `BadClip`.
    """
    size = clip_size(motion)
    if mask != AUTO:
        return read(mask, motion.metadata["clip"])
    latents = source_latents(backbone, motion)
    regions = changed_region(backbone, latents, motion.source_prompt, prompt, size[1:], seed)
    resolved = np.zeros(size, bool)
    for region, frames in zip(regions, backbone.latent_frame_spans(size[0]), strict=True):
        resolved[frames] = region
    return resolved


def apply(mask: NDArray[np.bool_], method: MotionMethod[Any], motion: Motion) -> Motion:
    """The motion with a mask (F, H, W) in pixels of its fitted clip.

    Raises `BadCall` for a method without masks, for another shape, and for an empty mask.
    """
    requirements.check_takes_mask(method)
    size = clip_size(motion)
    if mask.shape != size:
        raise BadCall(
            f"`mask` has the shape {mask.shape}; it must be that of the fitted clip, (frames, "
            f"height, width) = {size}"
        )
    if not mask.any():
        raise BadCall("`mask` has no true pixel, so nothing may change")
    return motion.masked(mask.astype(bool))


def overlay(clip: Video, mask: NDArray[np.bool_]) -> Video:
    """The clip, dimmed outside the mask (F, H, W)."""
    light = np.where(mask[..., None], 1.0, _DIMMED)
    return Video((clip.frames * light).round().astype(np.uint8), clip.fps)


def read(given: str, facts: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Read a mask (F, H, W) for a fitted clip; it is true where changes are allowed.

    `given` is a box "LEFT,TOP,RIGHT,BOTTOM" in fractions of the frame; the path of an image, which
    is used for every frame; or the path of a video, which is cut and fitted as the clip was. Bright
    pixels become true. `facts` is the entry "clip" of a motion's metadata. Raises `BadCall` for a
    bad box, and `BadClip` for a file that cannot be read, for an aspect ratio that is neither the
    source's nor the fitted clip's, and for an empty mask.
    """
    shape = _, height, width = (facts["frames"], facts["height"], facts["width"])
    box = _box(given)
    if box is not None:
        left, top, right, bottom = (
            round(fraction * side) for fraction, side in zip(box, (width, height) * 2, strict=True)
        )
        mask = np.zeros(shape, bool)
        mask[:, top:bottom, left:right] = True
        _check_not_empty(mask, given, f"the box covers no pixel of {width}x{height}")
        return mask
    path = Path(given)
    return fit(
        videos.read(path, frames=1) if _is_image(path) else _cut_like(path, facts), given, facts
    )


def fit(clip: Video, given: str, facts: Mapping[str, Any]) -> NDArray[np.bool_]:
    """A mask in memory, of one frame or of as many as the fitted clip, as a mask (F, H, W) for the
    fitted clip: it is fitted as the source was, and bright pixels become true.

    `given` is the name of the mask for messages, and `facts` as for `read`. Raises `BadClip` as
    `read` does.
    """
    height, width = facts["height"], facts["width"]
    _check_shape(clip, given, facts)
    _check_not_empty(_bright(clip), given, "no pixel of it is brighter than 127")
    how = facts.get("fit", "crop")  # motion files of earlier versions have no such entry
    mask = _bright(videos.fit(clip, height, width, how))
    _check_not_empty(
        mask, given, f"no bright pixel is left after fitting to {width}x{height} (`fit={how}`)"
    )
    return np.broadcast_to(mask, (facts["frames"], height, width))


def _bright(clip: Video) -> NDArray[np.bool_]:
    return np.asarray(clip.frames.mean(-1) >= 128)


def _check_not_empty(mask: NDArray[np.bool_], given: str, reason: str) -> None:
    if not mask.any():
        raise BadClip(f"the mask {given} is empty: {reason}, so nothing may change")


def _check_shape(mask: Video, given: str, facts: Mapping[str, Any]) -> None:
    """Raise `BadClip` unless the mask has the aspect ratio of the source or of the fitted clip."""
    fitted = (facts["height"], facts["width"])
    # Motion files of earlier versions do not hold the size of the source.
    source = tuple(facts.get("source_size", fitted))
    if not any(videos.same_aspect((mask.height, mask.width), size) for size in (source, fitted)):
        raise BadClip(
            f"the mask {given} is {mask.width}x{mask.height}, which is not the aspect ratio of the "
            f"clip; give a mask like the source, {source[1]}x{source[0]}, or like the fitted clip, "
            f"{fitted[1]}x{fitted[0]}, at any scale"
        )


def _box(given: str) -> tuple[float, ...] | None:
    """The four fractions of a box; None if `given` is a path. Raises `BadCall` for a bad box."""
    try:
        fractions = tuple(float(part) for part in given.split(","))
    except ValueError:
        return None
    if len(fractions) == 4:
        left, top, right, bottom = fractions
        if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
            return fractions
    elif len(fractions) == 1 or Path(given).exists():  # a file that is called 7, or 1,2
        return None
    raise BadCall(
        f"`mask` is {given}; a box is LEFT,TOP,RIGHT,BOTTOM in fractions of the frame from 0 to 1, "
        "with LEFT < RIGHT and TOP < BOTTOM, such as 0.2,0,0.8,1"
    )


def _is_image(path: Path) -> bool:
    try:
        videos.read(path, frames=2)
    except BadClip:
        return True
    return False


def _cut_like(path: Path, facts: Mapping[str, Any]) -> Video:
    start = facts.get("start", 0.0)  # motion files of earlier versions have no such entry
    try:
        return videos.read(path, start=start, frames=facts["frames"], fps=facts["fps"])
    except BadClip as error:
        raise BadClip(f"the mask does not fit the clip: {error}") from error


def source_latents(backbone: Backbone, motion: Motion) -> Tensor:
    """The latents (C, f, h, w) of the motion's clip. Raises `BadMotion` for a motion that has
    neither them nor the clip."""
    if motion.clip is not None:
        return backbone.encode(motion.clip)[0]
    motion.check_holds("latents")
    return motion.tensors["latents"]


def clip_size(motion: Motion) -> tuple[int, int, int]:
    """Frames, height and width of the clip that the motion was learned from."""
    facts = motion.metadata.get("clip")
    if facts is None:
        raise BadCall(
            "a mask needs the size of the clip, which this motion does not hold; learn it with "
            "recast.learn"
        )
    return facts["frames"], facts["height"], facts["width"]


def changed_phrases(source_prompt: str, prompt: str) -> tuple[list[int], list[int]]:
    """The phrases in which two prompts differ, as indices of words in the first and the second.

    A phrase is a run of words between articles, prepositions, conjunctions and punctuation marks.
    Upper and lower case are equal.
    """
    prompts = source_prompt.split(), prompt.split()
    words = [[word.lower().strip(_MARKS) for word in text] for text in prompts]
    differing: tuple[set[int], set[int]] = set(), set()
    matcher = SequenceMatcher(a=words[0], b=words[1], autojunk=False)
    for kind, *ends in matcher.get_opcodes():
        if kind != "equal":
            differing[0].update(range(*ends[:2]))
            differing[1].update(range(*ends[2:]))
    removed, added = (
        [index for phrase in _phrases(text) if changed & set(phrase) for index in phrase]
        for text, changed in zip(prompts, differing, strict=True)
    )
    return removed, added


def changed_region(
    backbone: Backbone,
    latents: Tensor,
    source_prompt: str,
    prompt: str,
    size: tuple[int, int],
    seed: int = 0,
) -> NDArray[np.bool_]:
    """The region of a clip's latents (C, F, h, w) that shows what differs between two prompts.

    Returns (F, H, W) for `size` (H, W), one mask for each frame of the latents. For each position
    it measures how much more the position attends to the phrases that differ than to the other
    phrases, in both prompts, summed over three noise levels and smoothed over three frames. The
    region is where this excess is above half of its range. If the prompts have no phrase in common
    and one of them has several phrases, the region is the whole clip. Raises `BadCall` if the
    prompts do not differ, or if the model has no cross-attention.
    """
    prompts = (source_prompt, prompt)
    changed_words = changed_phrases(*prompts)
    if not any(changed_words):
        raise BadCall(
            f"`mask=auto` needs words that differ between the source prompt {source_prompt!r} and "
            f"the prompt {prompt!r}"
        )
    phrases = [_phrases(text.split()) for text in prompts]
    other_words = [
        [index for phrase in own for index in phrase if index not in changed]
        for own, changed in zip(phrases, changed_words, strict=True)
    ]
    if not any(other_words) and max(map(len, phrases)) > 1:
        return np.ones((latents.shape[1], *size), bool)
    excess = _attention_excess(backbone, latents, prompts, changed_words, other_words, seed)
    enlarged = interpolate(_smoothed(excess)[:, None], size=size, mode="bilinear")[:, 0]
    low, high = enlarged.aminmax()
    if not high > low:
        raise BadCall(
            f"`mask=auto` gives no region, because {backbone.name} attends equally everywhere to "
            "the words that differ; give the mask as an image, a video or a box"
        )
    return np.asarray((enlarged > low + _THRESHOLD * (high - low)).cpu())


def _attention_excess(
    backbone: Backbone,
    latents: Tensor,
    prompts: tuple[str, str],
    changed_words: Sequence[Sequence[int]],
    other_words: Sequence[Sequence[int]],
    seed: int,
) -> Tensor:
    """How much more each position of the latents (C, F, h, w) attends to the changed words than to
    the other words, summed over both prompts and all noise levels, (F, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    x = latents[None].to(backbone.device)
    grid = backbone.schedule.sized(x.shape).grid(_GRID)
    total = torch.zeros((), device=x.device)
    for level in _LEVELS:
        t = grid[round((1 - level) * _GRID)]
        noised = backbone.schedule.noised(x, randn(tuple(x.shape), generator, x.device), t)
        for text, changed, others in zip(prompts, changed_words, other_words, strict=True):
            if changed:
                maps = backbone.attention(noised, t, text)
                total = total + maps[..., changed].mean(-1)
                if others:
                    total = total - maps[..., others].mean(-1)
    return total


def _phrases(words: Sequence[str]) -> list[list[int]]:
    """The indices of the words of each phrase. A separator belongs to no phrase."""
    phrases: list[list[int]] = [[]]
    for index, word in enumerate(words):
        if word.lower().strip(_MARKS) in _SEPARATORS:
            phrases.append([])
            continue
        phrases[-1].append(index)
        if word[-1] in _MARKS:
            phrases.append([])
    return [phrase for phrase in phrases if phrase]


def _smoothed(maps: Tensor) -> Tensor:
    """Maps (F, h, w), averaged over neighbouring frames with the weights 1, 2, 1."""
    frames = pad(maps.movedim(0, -1), (1, 1), mode="replicate").movedim(-1, 0)
    return (frames[:-2] + 2 * frames[1:-1] + frames[2:]) / 4
