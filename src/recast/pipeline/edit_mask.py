"""Where a result may differ from its source: a mask as the user gives it, or as the model sees it.

The model's own is where it looks, in the source, for the words that are to change: cross-attention
as a mask is after Hertz et al., "Prompt-to-Prompt" (2023), and DreamMotion takes it where the user
gives none.
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
from recast.pipeline import model_loading

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


def check(given: str, method: MotionMethod[Any], described: str) -> None:
    """Raise `BadCall` or `BadClip` unless the method heeds a mask and this one can be had: a box,
    an image or clip that opens, or "auto" for a source that is described."""
    _check_heeded(method)
    if given == AUTO:
        if not described.strip():
            raise BadCall(
                "--mask auto looks for the words that differ from those of the source, so it needs "
                "--source-prompt"
            )
    elif _box(given) is None:
        videos.read(Path(given), frames=1)


def made(
    given: str, backbone: Backbone, motion: Motion, prompt: str, seed: int
) -> NDArray[np.bool_]:
    """The mask (F, H, W) of a motion's clip, true where it may change. Raises `BadCall`,
    `BadClip`."""
    size = _size(motion)
    if given != AUTO:
        return read(given, motion.metadata["clip"])
    motion.check_holds("latents")
    latents = motion.tensors["latents"]
    found = changed_region(backbone, latents, motion.source_prompt, prompt, size[1:], seed)
    mask = np.zeros(size, bool)
    for region, shown in zip(found, backbone.latent_frame_spans(size[0]), strict=True):
        mask[shown] = region
    return mask


def applied(mask: NDArray[np.bool_], method: MotionMethod[Any], motion: Motion) -> Motion:
    """The motion with a mask (F, H, W) in pixels of its fitted clip. Raises `BadCall`."""
    _check_heeded(method)
    size = _size(motion)
    if mask.shape != size:
        raise BadCall(
            f"the mask is {mask.shape}; it must be as the fitted clip, (frames, height, width) = "
            f"{size}"
        )
    if not mask.any():
        raise BadCall("the mask is empty, so nothing may change")
    return motion.masked(mask.astype(bool))


def overlay(clip: Video, mask: NDArray[np.bool_]) -> Video:
    """The clip with all that is outside of the mask (F, H, W) dimmed."""
    light = np.where(mask[..., None], 1.0, _DIMMED)
    return Video((clip.frames * light).round().astype(np.uint8), clip.fps)


def read(given: str, facts: Mapping[str, Any]) -> NDArray[np.bool_]:
    """A mask (F, H, W), true where it is bright, for a fitted clip, of which a motion tells facts.

    A box "LEFT,TOP,RIGHT,BOTTOM" in shares of the frame; an image, which serves every frame; or a
    video, which is cut and fitted as the clip was. Both have the shape of the source or of the
    fitted clip. Raises `BadCall`, `BadClip`.
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
    how = facts.get("fit", "crop")  # files of earlier versions do not say
    mask = _bright(videos.fit(clip, height, width, how))
    _check_free(mask, given, f"nothing bright is left of it at {width}x{height} (--fit {how})")
    return np.broadcast_to(mask, shape)


def _bright(clip: Video) -> NDArray[np.bool_]:
    return np.asarray(clip.frames.mean(-1) >= 128)


def _check_free(mask: NDArray[np.bool_], given: str, why: str) -> None:
    if not mask.any():
        raise BadClip(f"the mask {given} is empty: {why}, so nothing may change")


def _check_shape(mask: Video, given: str, facts: Mapping[str, Any]) -> None:
    """Raise `BadClip` unless the mask has the shape of the source or of the fitted clip."""
    fitted = (facts["height"], facts["width"])
    source = tuple(facts.get("source_size", fitted))  # files of earlier versions do not say
    if not any(_alike((mask.height, mask.width), size) for size in (source, fitted)):
        raise BadClip(
            f"the mask {given} is {mask.width}x{mask.height}, which is another shape than the "
            f"clip's; give one like the source, {source[1]}x{source[0]}, or like the fitted clip, "
            f"{fitted[1]}x{fitted[0]}, at any scale"
        )


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have one aspect, but for a pixel that a side of either was rounded by."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _box(given: str) -> tuple[float, ...] | None:
    """The four shares of a box, or None for a path."""
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
            f"--mask {given}: a box is LEFT,TOP,RIGHT,BOTTOM in shares of the frame, such as "
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
    start = facts.get("start", 0.0)  # files of earlier versions do not say
    try:
        return videos.read(path, start=start, frames=facts["frames"], fps=facts["fps"])
    except BadClip as error:
        raise BadClip(f"the mask does not go with the clip: {error}") from error


def _size(motion: Motion) -> tuple[int, int, int]:
    """Frames, height and width of the clip that it was learned from."""
    facts = motion.metadata.get("clip")
    if facts is None:
        raise BadCall("this motion does not say how large its clip was; learn it with recast.learn")
    return facts["frames"], facts["height"], facts["width"]


def _check_heeded(method: MotionMethod[Any]) -> None:
    if not method.takes_mask:
        able = [
            name
            for name in model_loading.methods()
            if model_loading.method_module(name).Method.takes_mask
        ]
        raise BadCall(f"--mask: {method.name} takes no mask; methods that do: {', '.join(able)}")


def changed_phrases(described: str, prompt: str) -> tuple[list[int], list[int]]:
    """The places of the words, in both texts, of every phrase in which they differ. A phrase is
    what lies between articles, prepositions and commas; capitals do not count."""
    sides = described.split(), prompt.split()
    plain = [[word.lower().strip(_MARKS) for word in side] for side in sides]
    differ: tuple[set[int], set[int]] = set(), set()
    matcher = SequenceMatcher(a=plain[0], b=plain[1], autojunk=False)
    for kind, *ends in matcher.get_opcodes():
        if kind != "equal":
            differ[0].update(range(*ends[:2]))
            differ[1].update(range(*ends[2:]))
    gone, new = (
        [place for phrase in _phrases(side) if changed & set(phrase) for place in phrase]
        for side, changed in zip(sides, differ, strict=True)
    )
    return gone, new


def changed_region(
    backbone: Backbone,
    latents: Tensor,
    described: str,
    prompt: str,
    size: tuple[int, int],
    seed: int = 0,
) -> NDArray[np.bool_]:
    """Where a clip's latents (C, F, h, w) show what differs between its description and the
    prompt: (F, H, W) for `size` (H, W), a region for each frame of the latents.

    How much more a position attends to the phrases that differ than to the others, in both texts,
    is averaged over three noise levels, smoothed over three frames, and true above half of its
    range. Where a text has several phrases and none is in both, all of the clip is to change.
    Raises `BadCall` if nothing differs, or if the model has no cross-attention.
    """
    places = changed_phrases(described, prompt)
    if not any(places):
        raise BadCall(
            f"a mask needs words that differ between the source prompt {described!r} and the "
            f"prompt {prompt!r}"
        )
    phrases = [_phrases(text.split()) for text in (described, prompt)]
    others = [
        [place for phrase in own for place in phrase if place not in changed]
        for own, changed in zip(phrases, places, strict=True)
    ]
    if not any(others) and max(map(len, phrases)) > 1:
        return np.ones((latents.shape[1], *size), bool)
    generator = torch.Generator().manual_seed(seed)
    x = latents[None].to(backbone.device)
    grid = backbone.schedule.sized(x.shape).grid(_GRID)
    total = torch.zeros((), device=x.device)
    for level in _LEVELS:
        t = grid[round((1 - level) * _GRID)]
        noised = backbone.schedule.noised(x, randn(tuple(x.shape), generator, x.device), t)
        for text, changed, rest in zip((described, prompt), places, others, strict=True):
            if changed:
                maps = backbone.attention(noised, t, text)
                total = total + maps[..., changed].mean(-1)
                if rest:
                    total = total - maps[..., rest].mean(-1)
    wide = interpolate(_smoothed(total)[:, None], size=size, mode="bilinear")[:, 0]
    low, high = wide.aminmax()
    if not high > low:
        raise BadCall(
            f"{backbone.name} attends to the words that differ everywhere alike, which makes no "
            "mask; give one as an image, a video or a box"
        )
    return np.asarray((wide > low + _THRESHOLD * (high - low)).cpu())


def _phrases(words: Sequence[str]) -> list[list[int]]:
    """The places of words by phrase; the words between phrases belong to none."""
    found: list[list[int]] = [[]]
    for place, word in enumerate(words):
        if word.lower().strip(_MARKS) in _BETWEEN:
            found.append([])
            continue
        found[-1].append(place)
        if word[-1] in _MARKS:
            found.append([])
    return [phrase for phrase in found if phrase]


def _smoothed(maps: Tensor) -> Tensor:
    """Weights 1, 2, 1 over neighbouring frames; maps (F, h, w)."""
    frames = pad(maps.movedim(0, -1), (1, 1), mode="replicate").movedim(-1, 0)
    return (frames[:-2] + 2 * frames[1:-1] + frames[2:]) / 4
