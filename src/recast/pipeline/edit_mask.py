"""Where a result may differ from its source: a mask from the user, or one that the model makes.

The model's own mask is where it attends, in the source, to the words that are to change. Using
cross-attention as a mask follows Hertz et al., "Prompt-to-Prompt" (2023); DreamMotion uses it where
the user gives no mask.
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
_PLACES = {"in", "on", "at", "by", "near", "over", "under", "above", "below", "behind", "before"}
_WAYS = {"from", "to", "of", "into", "onto", "through", "across", "along", "around", "up", "down"}
_LINKS = {"and", "or", "but", "as", "with", "without", "while", "is", "are", "was", "were"}
_BETWEEN = _ARTICLES | _PLACES | _WAYS | _LINKS
# Tuned on the shapes world (docs/log/dreammotion.md): little noise, and half of the range.
_LEVELS = (0.1, 0.2, 0.3)
_THRESHOLD = 0.5
_GRID = 100
_DIMMED = 0.3


def check(mask: str, method: MotionMethod[Any], source_prompt: str) -> None:
    """Raise `BadCall` or `BadClip` unless the method takes a mask and this one is usable: a box, an
    image or clip that opens, or "auto" for a source that has a prompt."""
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
    """The mask (F, H, W) of a motion's clip, true where the clip may change. Raises `BadCall`,
    `BadClip`."""
    size = _size(motion)
    if mask != AUTO:
        return read(mask, motion.metadata["clip"])
    motion.check_holds("latents")
    latents = motion.tensors["latents"]
    regions = changed_region(backbone, latents, motion.source_prompt, prompt, size[1:], seed)
    resolved = np.zeros(size, bool)
    for region, frames in zip(regions, backbone.latent_frame_spans(size[0]), strict=True):
        resolved[frames] = region
    return resolved


def apply(mask: NDArray[np.bool_], method: MotionMethod[Any], motion: Motion) -> Motion:
    """The motion with a mask (F, H, W) in pixels of its fitted clip. Raises `BadCall`."""
    requirements.check_takes_mask(method)
    size = _size(motion)
    if mask.shape != size:
        raise BadCall(
            f"the mask has the shape {mask.shape}; it must be that of the fitted clip, (frames, "
            f"height, width) = {size}"
        )
    if not mask.any():
        raise BadCall("the mask is empty, so nothing may change")
    return motion.masked(mask.astype(bool))


def overlay(clip: Video, mask: NDArray[np.bool_]) -> Video:
    """The clip, dimmed outside the mask (F, H, W)."""
    light = np.where(mask[..., None], 1.0, _DIMMED)
    return Video((clip.frames * light).round().astype(np.uint8), clip.fps)


def read(given: str, facts: Mapping[str, Any]) -> NDArray[np.bool_]:
    """A mask (F, H, W), true where it is bright, for a fitted clip whose `facts` a motion holds.

    It is given as a box "LEFT,TOP,RIGHT,BOTTOM" in fractions of the frame; as an image, which is
    used for every frame; or as a video, which is cut and fitted as the clip was. Image and video
    have the aspect ratio of the source or of the fitted clip. Raises `BadCall`, `BadClip`.
    """
    shape = _, height, width = (facts["frames"], facts["height"], facts["width"])
    box = _box(given)
    if box is not None:
        left, top, right, bottom = (
            round(share * side) for share, side in zip(box, (width, height) * 2, strict=True)
        )
        mask = np.zeros(shape, bool)
        mask[:, top:bottom, left:right] = True
        _check_free(mask, given, f"it holds no pixel of {width}x{height}")
        return mask
    path = Path(given)
    clip = videos.read(path, frames=1) if _is_image(path) else _cut_like(path, facts)
    _check_shape(clip, given, facts)
    _check_free(_bright(clip), given, "nothing in it is bright")
    how = facts.get("fit", "crop")  # motion files of earlier versions have no such entry
    mask = _bright(videos.fit(clip, height, width, how))
    _check_free(mask, given, f"nothing bright is left of it at {width}x{height} (`fit={how}`)")
    return np.broadcast_to(mask, shape)


def _bright(clip: Video) -> NDArray[np.bool_]:
    return np.asarray(clip.frames.mean(-1) >= 128)


def _check_free(mask: NDArray[np.bool_], given: str, why: str) -> None:
    if not mask.any():
        raise BadClip(f"the mask {given} is empty: {why}, so nothing may change")


def _check_shape(mask: Video, given: str, facts: Mapping[str, Any]) -> None:
    """Raise `BadClip` unless the mask has the aspect ratio of the source or of the fitted clip."""
    fitted = (facts["height"], facts["width"])
    source = tuple(facts.get("source_size", fitted))  # as for "fit" above
    if not any(_alike((mask.height, mask.width), size) for size in (source, fitted)):
        raise BadClip(
            f"the mask {given} is {mask.width}x{mask.height}, which is not the aspect ratio of the "
            f"clip; give a mask like the source, {source[1]}x{source[0]}, or like the fitted clip, "
            f"{fitted[1]}x{fitted[0]}, at any scale"
        )


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same aspect ratio, up to one pixel of rounding on a side."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _box(given: str) -> tuple[float, ...] | None:
    """The four fractions of a box, or None for a path."""
    parts = given.split(",")
    try:
        shares = tuple(float(part) for part in parts)
    except ValueError:
        return None
    if len(shares) != 4:
        return None
    left, top, right, bottom = shares
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise BadCall(
            f"`mask` is {given}; a box is LEFT,TOP,RIGHT,BOTTOM in fractions of the frame, such as "
            "0.2,0,0.8,1"
        )
    return shares


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


def _size(motion: Motion) -> tuple[int, int, int]:
    """Frames, height and width of the clip that the motion was learned from."""
    facts = motion.metadata.get("clip")
    if facts is None:
        raise BadCall("this motion does not hold the size of its clip; learn it with recast.learn")
    return facts["frames"], facts["height"], facts["width"]


def changed_phrases(source_prompt: str, prompt: str) -> tuple[list[int], list[int]]:
    """The indices of the words, in both texts, of every phrase in which the texts differ. A phrase
    is what stands between articles, prepositions and commas; upper case counts as lower case."""
    sides = source_prompt.split(), prompt.split()
    plain = [[word.lower().strip(_MARKS) for word in side] for side in sides]
    differ: tuple[set[int], set[int]] = set(), set()
    matcher = SequenceMatcher(a=plain[0], b=plain[1], autojunk=False)
    for kind, *ends in matcher.get_opcodes():
        if kind != "equal":
            differ[0].update(range(*ends[:2]))
            differ[1].update(range(*ends[2:]))
    gone, new = (
        [index for phrase in _phrases(side) if changed & set(phrase) for index in phrase]
        for side, changed in zip(sides, differ, strict=True)
    )
    return gone, new


def changed_region(
    backbone: Backbone,
    latents: Tensor,
    source_prompt: str,
    prompt: str,
    size: tuple[int, int],
    seed: int = 0,
) -> NDArray[np.bool_]:
    """Where a clip's latents (C, F, h, w) show what differs between its own prompt and the new one:
    (F, H, W) for `size` (H, W), a region for each frame of the latents.

    Measured is how much more a position attends to the phrases that differ than to the others, in
    both texts, averaged over three noise levels and smoothed over three frames; the region is where
    this exceeds half of its range. Where a text has several phrases and no phrase stands in both
    texts, the region is the whole clip. Raises `BadCall` if the texts do not differ, or if the
    model has no cross-attention.
    """
    changed_words = changed_phrases(source_prompt, prompt)
    if not any(changed_words):
        raise BadCall(
            f"`mask=auto` needs words that differ between the source prompt {source_prompt!r} and "
            f"the prompt {prompt!r}"
        )
    phrases = [_phrases(text.split()) for text in (source_prompt, prompt)]
    others = [
        [index for phrase in own for index in phrase if index not in changed]
        for own, changed in zip(phrases, changed_words, strict=True)
    ]
    if not any(others) and max(map(len, phrases)) > 1:
        return np.ones((latents.shape[1], *size), bool)
    excess = _attention_to_changes(
        backbone, latents, (source_prompt, prompt), changed_words, others, seed
    )
    wide = interpolate(_smoothed(excess)[:, None], size=size, mode="bilinear")[:, 0]
    low, high = wide.aminmax()
    if not high > low:
        raise BadCall(
            f"{backbone.name} attends equally everywhere to the words that differ, so no mask "
            "results; give a mask as an image, a video or a box"
        )
    return np.asarray((wide > low + _THRESHOLD * (high - low)).cpu())


def _attention_to_changes(
    backbone: Backbone,
    latents: Tensor,
    texts: tuple[str, str],
    changed_words: Sequence[Sequence[int]],
    other_words: Sequence[Sequence[int]],
    seed: int,
) -> Tensor:
    """How much more each position of the latents (C, F, h, w) attends to the changed words of both
    texts than to their other words, summed over noise levels: (F, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    x = latents[None].to(backbone.device)
    grid = backbone.schedule.sized(x.shape).grid(_GRID)
    total = torch.zeros((), device=x.device)
    for level in _LEVELS:
        t = grid[round((1 - level) * _GRID)]
        noised = backbone.schedule.noised(x, randn(tuple(x.shape), generator, x.device), t)
        for text, changed, others in zip(texts, changed_words, other_words, strict=True):
            if changed:
                maps = backbone.attention(noised, t, text)
                total = total + maps[..., changed].mean(-1)
                if others:
                    total = total - maps[..., others].mean(-1)
    return total


def _phrases(words: Sequence[str]) -> list[list[int]]:
    """The indices of words by phrase; the words between phrases belong to none."""
    phrases: list[list[int]] = [[]]
    for index, word in enumerate(words):
        if word.lower().strip(_MARKS) in _BETWEEN:
            phrases.append([])
            continue
        phrases[-1].append(index)
        if word[-1] in _MARKS:
            phrases.append([])
    return [phrase for phrase in phrases if phrase]


def _smoothed(maps: Tensor) -> Tensor:
    """Weights 1, 2, 1 over neighbouring frames; maps (F, h, w)."""
    frames = pad(maps.movedim(0, -1), (1, 1), mode="replicate").movedim(-1, 0)
    return (frames[:-2] + 2 * frames[1:-1] + frames[2:]) / 4
