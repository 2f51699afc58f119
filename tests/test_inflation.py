"""Tune-A-Video's inflation of an image network."""

from pathlib import Path

import pytest
import torch

from recast.backbones import stable_diffusion
from recast.backbones.base import Backbone
from recast.errors import BadMotion
from recast.events import Event
from recast.methods import tune_a_video
from recast.motions.method import Sampling
from recast.motions.motion import Motion
from recast.networks.inflation import InflatedNetwork

from .inputs import noise

FRAMES = 3


def inflated(backbone: Backbone, tensors: dict[str, torch.Tensor] | None = None) -> InflatedNetwork:
    spatial = backbone.transformers_for("spatial_transformers")
    start = InflatedNetwork.zeros(backbone.network, backbone.component, spatial)
    taps = (*backbone.taps("all_keys"), *backbone.taps("all_values"))
    return InflatedNetwork(
        backbone.network, {**start, **(tensors or {})}, "cpu", backbone.component, spatial, taps
    )


def predict(backbone: Backbone, x: torch.Tensor) -> torch.Tensor:
    denoise = backbone.denoiser(backbone.encode_text(["a cat"] * len(x)))
    with torch.no_grad():
        return denoise(x, torch.tensor(501.0)).x0


def test_before_training_frames_see_earlier_frames_only() -> None:
    backbone, x = stable_diffusion.tiny(), noise(2, 4, FRAMES + 1, 8, 8)
    adapter = inflated(backbone)
    with adapter.applied(FRAMES + 1):
        out = predict(backbone, x)
        for changed, seen_by in ((0, (0, 1, 2, 3)), (1, (1, 2, 3)), (2, (2, 3)), (3, (3,))):
            moved = x.clone()
            moved[0, :, changed] += 1
            difference = (predict(backbone, moved) - out).abs().amax((1, 3, 4))
            assert tuple(torch.nonzero(difference[0] > 1e-4).flatten().tolist()) == seen_by
            assert float(difference[1].max()) < 1e-5  # the other clip


def test_in_a_clip_of_equal_frames_nothing_changes_before_training() -> None:
    backbone = stable_diffusion.tiny()
    x = noise(1, 4, 1, 8, 8).repeat(1, 1, FRAMES, 1, 1)
    plain = predict(backbone, x)
    with inflated(backbone).applied(FRAMES):
        torch.testing.assert_close(predict(backbone, x), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predict(backbone, x), plain)  # and everything is removed again


def test_the_new_attention_looks_at_all_frames_of_a_position() -> None:
    """Against torch's own attention, with the same weights."""
    backbone = stable_diffusion.tiny()
    adapter = inflated(backbone)
    with torch.no_grad():
        for index, tensor in enumerate(adapter.tensors.values()):
            tensor.copy_(noise(*tensor.shape, seed=index) * 0.1)
    block = adapter._blocks[0]
    stem = f"{backbone.component}.{block.path}.attn_temp."
    weights = {
        name: adapter._initial[block.path, name] + adapter.tensors[f"{stem}{name}.diff"]
        for name in ("to_q", "to_k", "to_v", "to_out")
    }
    oracle = torch.nn.MultiheadAttention(block.channels, block.heads, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([weights[n] for n in ("to_q", "to_k", "to_v")]))
        oracle.in_proj_bias.zero_()
        oracle.out_proj.weight.copy_(weights["to_out"])
        oracle.out_proj.bias.copy_(adapter.tensors[f"{stem}to_out.bias"])
    hidden = noise(2 * FRAMES, 5, block.channels)
    attend = adapter._attend_over_time(block, FRAMES)
    with torch.no_grad():
        found = attend(torch.nn.Identity(), (), hidden)
        for clip in range(2):
            for position in range(5):
                x = hidden[clip * FRAMES : (clip + 1) * FRAMES, position][None]
                normed = torch.nn.functional.layer_norm(x, x.shape[-1:])
                expected = x + oracle(normed, normed, normed)[0]
                torch.testing.assert_close(
                    found[clip * FRAMES : (clip + 1) * FRAMES, position], expected[0]
                )


def test_tensors_of_another_model_are_refused() -> None:
    backbone = stable_diffusion.tiny()
    names = [name for name in inflated(backbone).tensors if "attn_temp" in name]
    with pytest.raises(BadMotion, match=f"the motion's {names[0]} does not fit"):
        inflated(backbone, {names[0]: torch.zeros(3, 3)})
    with pytest.raises(BadMotion, match=r"unet\.elsewhere\.attn_temp\.to_q\.diff does not fit"):
        inflated(backbone, {"unet.elsewhere.attn_temp.to_q.diff": torch.zeros(3, 3)})


def test_training_lowers_the_loss_and_a_motion_makes_clips(tmp_path: Path) -> None:
    backbone = stable_diffusion.tiny()
    method = tune_a_video.Method(tune_a_video.Config(iterations=40, lr=3e-3, inversion_steps=1))
    sampling = Sampling(steps=2, guidance_scale=2.0, negative_prompt="", seed=0)
    clip = noise(1, 3, FRAMES, 16, 16).clamp(-1, 1)
    events: list[Event] = []
    motion = method.learn(backbone, clip, "a cat", sampling).run(events.append)
    losses = motion.metadata["losses"]
    assert sum(losses[-10:]) < sum(losses[:10])
    again = Motion.load(motion.save(tmp_path / "cat.safetensors"))
    result = method.transfer(backbone, again, "a dog", sampling).run(lambda event: None)
    assert result.shape == backbone.latent_shape(FRAMES, 16, 16)
    assert torch.isfinite(result).all()
    plain = tune_a_video.Method(
        tune_a_video.Config(iterations=40, lr=3e-3, inversion_steps=1, strength=0.5)
    )
    weaker = plain.transfer(backbone, again, "a dog", sampling).run(lambda event: None)
    assert float((weaker - result).abs().max()) > 1e-4
