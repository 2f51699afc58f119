"""Query injection: what it records, what the network reads of it, its cost, errors."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from recast.backbones import gaussian, unet3d
from recast.diffusion import initial_noise
from recast.diffusion.ddim_inversion import invert
from recast.diffusion.sampling import ddim
from recast.errors import BadCall, BadMotion, UnknownName
from recast.methods import unguided
from recast.methods.query_injection import PRESETS, Config, Method
from recast.networks.feature_hooks import override, record

from .hooks import hook_count
from .inputs import square_clip
from .short_runs import SAMPLING, learn, transfer

SHORT = Config(injected=0.5, initial_noise="low_frequency")


def test_learn_records_the_inverted_latents_of_the_injected_levels() -> None:
    backbone, method = unet3d.tiny(), Method(dataclasses.replace(SHORT, inversion_steps=8))
    motion = learn(method, backbone)
    assert backbone.nfe == 8  # none for queries, which are read anew for every transfer
    plain = backbone.denoiser(backbone.encode_text(["a square"]))
    schedule = backbone.schedule
    fine = schedule.refine(schedule.grid(4), 8)
    at = {
        float(s.s): s.x
        for s in invert(plain, schedule, fine, backbone.encode(square_clip(backbone)))
    }
    for index, t in enumerate(schedule.grid(4)[:2]):
        assert torch.equal(motion.tensors["latents"][index], at[float(t)][0])
    assert len(motion.tensors["latents"]) == 2
    assert torch.equal(motion.tensors["noise"], at[float(schedule.grid(4)[0])][0])


def test_the_first_levels_use_the_queries_of_the_source_and_the_others_their_own() -> None:
    """Against the sampling loop by hand, in which every query of the decoder is replaced."""
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    schedule, taps = backbone.schedule, backbone.taps("queries")
    source = backbone.denoiser(backbone.encode_text(["a square"]))
    denoise = backbone.cfg_denoiser("a cat", "", SAMPLING.guidance_scale)
    generator = torch.Generator().manual_seed(SAMPLING.seed)
    x = initial_noise.initial("low_frequency", motion.tensors["noise"][None], generator)
    for index, (t, s) in enumerate(zip(schedule.grid(4), schedule.grid(4)[1:], strict=False)):
        with torch.no_grad():
            if index < 2:
                with record(backbone.network, taps, 4) as seen:
                    source(motion.tensors["latents"][index][None], t)
                with override(backbone.network, taps, seen, 4):
                    out = denoise(x, t)
            else:
                out = denoise(x, t)
        x = ddim(schedule, out, s)
    assert torch.equal(transfer(method, backbone, motion), x)
    assert hook_count(backbone.network) == 0


def test_temporal_queries_are_injected_for_both_clips_of_a_guided_pass() -> None:
    """Temporal attention does not know where a clip of the batch ends."""
    backbone = unet3d.tiny()
    method = Method(dataclasses.replace(SHORT, queries=("temporal_queries",)))
    motion, taps = learn(method, backbone), backbone.taps("temporal_queries")
    x, t = motion.tensors["latents"][:1], backbone.schedule.grid(4)[0]
    texts = backbone.encode_text(["", "a cat"])
    negative, positive = (backbone.encode_text([prompt]) for prompt in ("", "a cat"))
    with torch.no_grad():
        with record(backbone.network, taps, 4) as seen:
            backbone.denoiser(negative)(x.flip(2), t)
        with override(backbone.network, taps, seen, 4):
            both = backbone.denoiser(texts)(x.expand(2, *x.shape[1:]), t).eps
            alone = [backbone.denoiser(one)(x, t).eps[0] for one in (negative, positive)]
        free = backbone.denoiser(texts)(x.expand(2, *x.shape[1:]), t).eps
    torch.testing.assert_close(both, torch.stack(alone), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both, free, atol=1e-4)
    assert torch.isfinite(transfer(method, backbone, motion)).all()


def test_every_injected_level_costs_one_pass_more() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    before = backbone.nfe
    transfer(method, backbone, motion)
    assert backbone.nfe - before == 2 * 4 + 2


def test_without_injected_levels_it_is_plain_sampling() -> None:
    backbone = unet3d.tiny()
    method = Method(dataclasses.replace(SHORT, injected=0, initial_noise="random"))
    plain = unguided.Method(unguided.Config())
    expected = transfer(plain, backbone, learn(plain, backbone))
    assert torch.equal(transfer(method, backbone, learn(method, backbone)), expected)


def test_the_injected_layers_can_be_chosen() -> None:
    backbone = unet3d.tiny()
    motion = learn(Method(SHORT), backbone)

    def made(*places: int) -> Tensor:
        return transfer(Method(dataclasses.replace(SHORT, places=places)), backbone, motion)

    assert torch.equal(made(), made(*range(6)))
    assert not torch.equal(made(), made(0))
    with pytest.raises(BadCall, match="role queries of tiny-unet3d has layers 0 to 5, got 6"):
        made(6)


def test_a_closed_job_leaves_no_hooks() -> None:
    backbone, method = unet3d.tiny(), Method(SHORT)
    events = method.transfer(backbone, learn(method, backbone), "a cat", SAMPLING)
    next(events)
    events.close()
    assert hook_count(backbone.network) == 0


def test_motions_of_other_settings_are_refused() -> None:
    backbone, method = gaussian.tiny(), Method(SHORT)
    motion = learn(method, backbone)
    with pytest.raises(
        BadMotion, match=r"learned with `injected` 0\.5, but `injected` is 0\.25 now"
    ):
        transfer(Method(dataclasses.replace(SHORT, injected=0.25)), backbone, motion)
    with pytest.raises(BadMotion, match="learned with `steps` 4, but `steps` is 8 now"):
        transfer(method, backbone, motion, dataclasses.replace(SAMPLING, steps=8))
    with pytest.raises(UnknownName, match="'query'"):
        transfer(Method(dataclasses.replace(SHORT, queries=("query",))), backbone, motion)
    for name in ("noise", "latents"):
        rest = {key: tensor for key, tensor in motion.tensors.items() if key != name}
        with pytest.raises(BadMotion, match=f"has no {name}"):
            transfer(method, backbone, dataclasses.replace(motion, tensors=rest))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": ()}, "`queries` must name at least one role"),
        ({"injected": 1.5}, "`injected` must be between 0 and 1, got 1.5"),
        ({"inversion_steps": 0}, "`inversion_steps` must be at least 1, got 0"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCall, match=message):
        dataclasses.replace(PRESETS["shapes"], **changes)
