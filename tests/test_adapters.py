"""Adapters of a network: their effect is that of their formula, and it ends with the context."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from recast.backbones import unet3d
from recast.backbones.base import Backbone
from recast.backbones.show1 import backbone as show1
from recast.errors import BadMotion, UnknownName
from recast.networks import unet_roles
from recast.networks.adapters import (
    Adapter,
    LoRA,
    WeightDifferences,
    input_shapes,
    weighted_sum,
)
from recast.networks.motion_embeddings import MotionEmbeddings

from .hooks import hook_count
from .inputs import noise
from .oracles import zeroscope_unet

ROLE = "temporal_transformers"
T = torch.tensor(501.0)
KINDS = ["embeddings", "lora", "shifts"]


def out(backbone: Backbone, x: Tensor) -> Tensor:
    return backbone.denoiser(backbone.encode_text(["a cat"] * len(x)))(x, T).eps


def paths(backbone: Backbone) -> list[str]:
    places = backbone.transformers_for(ROLE)
    return [path for place in places for attention in place.attentions for path in attention]


def shapes_of(backbone: Backbone, frames: int = 3) -> dict[str, tuple[int, ...]]:
    with torch.no_grad(), input_shapes(backbone.network, paths(backbone)) as shapes:
        out(backbone, noise(*backbone.latent_shape(frames, 16, 16)))
    return shapes


def fresh(kind: str, backbone: Backbone) -> dict[str, Tensor]:
    network = backbone.network
    if kind == "embeddings":
        return MotionEmbeddings.zeros(backbone.transformers_for(ROLE), shapes_of(backbone))
    if kind == "lora":
        return LoRA.initial(network, paths(backbone), 2, "unet", torch.Generator().manual_seed(0))
    return WeightDifferences.zeros(network, paths(backbone), "unet")


def built(kind: str, backbone: Backbone, tensors: Mapping[str, Tensor], **options: Any) -> Adapter:
    if kind == "embeddings":
        places = backbone.transformers_for(ROLE)
        return MotionEmbeddings(backbone.network, tensors, "cpu", places, **options)
    return {"lora": LoRA, "shifts": WeightDifferences}[kind](
        backbone.network, tensors, "cpu", "unet"
    )


def filled(tensors: Mapping[str, Tensor], size: float = 0.3) -> dict[str, Tensor]:
    """Add noise to every tensor, so that each has an effect."""
    return {
        name: tensor + size * noise(*tensor.shape, seed=seed)
        for seed, (name, tensor) in enumerate(tensors.items())
    }


def bare(network: nn.Module) -> bool:
    """Whether the network has no hooks and only its own layers."""
    foreign = [m for m in network.modules() if type(m).__module__.startswith("peft")]
    return hook_count(network) == 0 and not foreign and not hasattr(network, "peft_config")


@pytest.mark.parametrize("tiny", [unet3d.tiny, show1.tiny], ids=["unet3d", "show1"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_no_bit_of_the_output(
    kind: str, tiny: Callable[[], Backbone]
) -> None:
    backbone = tiny()
    x = noise(*backbone.latent_shape(3, 16, 16))
    with torch.no_grad():
        plain = out(backbone, x)
        adapter = built(kind, backbone, fresh(kind, backbone))
        with adapter.applied():
            assert torch.equal(out(backbone, x), plain)
        with built(kind, backbone, filled(adapter.tensors)).applied():
            assert float((out(backbone, x) - plain).abs().max()) > 1e-3
        assert torch.equal(out(backbone, x), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_inside_the_context_removes_the_adapter(kind: str) -> None:
    backbone = unet3d.tiny()
    before = {name: weight.clone() for name, weight in backbone.network.state_dict().items()}
    adapter = built(kind, backbone, filled(fresh(kind, backbone)))
    assert bare(backbone.network)
    seen = []

    def breaks() -> None:
        seen.append(bare(backbone.network))
        raise ArithmeticError

    with pytest.raises(ArithmeticError), adapter.applied():
        breaks()
    assert seen == [False]
    assert bare(backbone.network)
    after = backbone.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_an_error_while_shapes_are_recorded_removes_the_hooks() -> None:
    backbone = unet3d.tiny()
    with pytest.raises(ArithmeticError), input_shapes(backbone.network, paths(backbone)):
        raise ArithmeticError
    assert bare(backbone.network)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_tensors_of_the_adapter_get_a_gradient(kind: str) -> None:
    backbone = unet3d.tiny()
    adapter = built(kind, backbone, filled(fresh(kind, backbone)))
    with adapter.applied():
        loss = out(backbone, noise(1, 4, 3, 8, 8)).square().mean()
        gradients = torch.autograd.grad(loss, list(adapter.tensors.values()))
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    assert all(weight.grad is None for weight in backbone.network.parameters())
    assert not any(weight.requires_grad for weight in backbone.network.parameters())


def attended(
    x: Tensor, query_key: Tensor, value: Tensor, weights: Mapping[str, Tensor], heads: int
) -> Tensor:
    """Temporal attention after eq. 1, head by head, for x of (N, F, C)."""
    q = (x + query_key) @ weights["q"].T
    k = (x + query_key) @ weights["k"].T
    v = (x + value) @ weights["v"].T
    wide = q.shape[-1] // heads
    rows = []
    for head in range(heads):
        part = slice(head * wide, (head + 1) * wide)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / wide**0.5
        rows.append(torch.softmax(scores, -1) @ v[..., part])
    return torch.cat(rows, -1) @ weights["out"].T + weights["bias"]


@pytest.mark.parametrize("difference", [False, True])
def test_temporal_attention_with_embeddings_is_eq_1(difference: bool) -> None:
    """With the difference of the values in time and with γ. The clips of a batch follow one
    another."""
    backbone, gamma = unet3d.tiny(), 0.7
    place = backbone.transformers_for(ROLE)[0]
    attention = place.attentions[1]
    parent = attention.query.rpartition(".")[0]
    layer: Any = backbone.network.get_submodule(parent)
    positions, frames = shapes_of(backbone)[attention.value][:2]
    tensors = filled(fresh("embeddings", backbone))
    query_key = tensors[f"query_key.{place.path}"]
    value = tensors[f"value.{attention.value}"]
    assert query_key.shape == (1, frames, layer.to_q.in_features)
    assert value.shape == (positions, frames, layer.to_v.in_features)
    if difference:
        value = torch.stack(
            [value[:, 0], *(value[:, i] - value[:, i - 1] for i in range(1, frames))], 1
        )
    x = noise(2 * positions, frames, layer.to_q.in_features, seed=9)
    weights = {
        "q": layer.to_q.weight,
        "k": layer.to_k.weight,
        "v": layer.to_v.weight,
        "out": layer.to_out[0].weight,
        "bias": layer.to_out[0].bias,
    }
    expected = attended(x, query_key, gamma * torch.cat([value, value]), weights, layer.heads)
    adapter = built("embeddings", backbone, tensors, gamma=gamma, difference=difference)
    with torch.no_grad(), adapter.applied():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_embeddings_are_interpolated_linearly_in_time() -> None:
    """From 2 frames to 4: the new centres lie at ¼ and ¾ of the way, and the ends keep their
    values."""
    backbone = unet3d.tiny()
    place = backbone.transformers_for(ROLE)[0]
    name, query = f"query_key.{place.path}", place.attentions[0].query
    width = backbone.network.get_submodule(query).in_features
    ramp = torch.tensor([0.0, 1.0])[None, :, None].expand(1, 2, width)
    seen: list[Tensor] = []
    layer: Any = backbone.network.get_submodule(query)
    with built("embeddings", backbone, {name: ramp}).applied():
        handle = layer.register_forward_hook(lambda m, args, output: seen.append(args[0]))
        layer(torch.zeros(5, 4, width))
        handle.remove()
    assert seen[0].shape == (5, 4, width)
    torch.testing.assert_close(seen[0][2, :, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


class InterpolationCount(TorchDispatchMode):
    """Inside this context `calls` counts linear interpolations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is torch.ops.aten.upsample_linear1d.default
        return func(*args, **(kwargs or {}))


def test_constant_embeddings_are_interpolated_once() -> None:
    """The result of every call is that of embeddings that may change."""
    backbone = unet3d.tiny()
    tensors, x = filled(fresh("embeddings", backbone)), noise(2, 4, 6, 8, 8)  # 6 frames, not 3
    results, calls = [], []
    for constant in (False, True):
        options = {"gamma": 0.7, "difference": True, "constant": constant}
        adapter = built("embeddings", backbone, tensors, **options)
        with InterpolationCount() as count, torch.no_grad(), adapter.applied():
            results += [out(backbone, x) for _ in range(3)]
        calls.append(count.calls)
    projections = [path for path in paths(backbone) if "to_out" not in path]
    assert calls == [3 * len(projections), len(tensors)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_constant_embeddings_get_no_gradient() -> None:
    backbone = unet3d.tiny()
    tensors = filled(fresh("embeddings", backbone))
    x = noise(1, 4, 3, 8, 8).requires_grad_(True)
    gradients = []
    for constant in (False, True):
        adapter = built("embeddings", backbone, tensors, constant=constant)
        with adapter.applied():
            value = out(backbone, x).square().mean()
            (slope,) = torch.autograd.grad(value, x, retain_graph=True)
            gradients.append(slope)
            one = next(iter(adapter.tensors.values()))
            (own,) = torch.autograd.grad(value, one, allow_unused=True)
            assert (own is None) == constant
    torch.testing.assert_close(*gradients)


def test_lora_adds_b_times_a() -> None:
    backbone = unet3d.tiny()
    path = paths(backbone)[0]
    layer: Any = backbone.network.get_submodule(path)
    a, b, x = noise(2, layer.in_features), noise(layer.out_features, 2, seed=1), noise(5, 16)
    tensors = {f"unet.{path}.lora_A.weight": a, f"unet.{path}.lora_B.weight": b}
    with torch.no_grad(), built("lora", backbone, tensors).applied():
        adapted = backbone.network.get_submodule(path)(x)
    torch.testing.assert_close(adapted, layer(x) + x @ (b @ a).T)


def test_weight_differences_are_added_to_the_weights() -> None:
    backbone = unet3d.tiny()
    path = paths(backbone)[0]
    layer: Any = backbone.network.get_submodule(path)
    shift, x = noise(layer.out_features, layer.in_features), noise(5, 16)
    with torch.no_grad(), built("shifts", backbone, {f"unet.{path}.diff": shift}).applied():
        torch.testing.assert_close(layer(x), x @ (layer.weight + shift).T)


def test_peft_loads_the_lora() -> None:
    """Under the keys of peft, and with the same output. The prefix is that of diffusers."""
    backbone, other = unet3d.tiny(), unet3d.tiny()
    tensors, x = filled(fresh("lora", backbone)), noise(1, 4, 3, 8, 8)
    with torch.no_grad(), built("lora", backbone, tensors).applied():
        expected = out(backbone, x)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=paths(other))
    network = inject_adapter_in_model(config, other.network, "there")
    found = set_peft_model_state_dict(
        network, {name.removeprefix("unet."): t for name, t in tensors.items()}, "there"
    )
    assert found.unexpected_keys == []
    with torch.no_grad():
        torch.testing.assert_close(out(other, x), expected)


def test_diffusers_loads_the_lora() -> None:
    class Loading(UNet3DConditionModel, PeftAdapterMixin):  # type: ignore[misc]
        """The class of diffusers for this model cannot load adapters, but the mixin of its other
        classes can."""

    backbone, other = unet3d.tiny(), unet3d.tiny()
    tensors, x = filled(fresh("lora", backbone)), noise(1, 4, 3, 8, 8)
    with torch.no_grad(), built("lora", backbone, tensors).applied():
        expected = out(backbone, x)
    network = Loading.from_config(other.network.config)
    network.load_state_dict(other.network.state_dict())
    network.load_lora_adapter(dict(tensors), prefix="unet", adapter_name="there")
    text = other.encode_text(["a cat"]).text
    with torch.no_grad():
        made_there = network.eval()(x, T, encoder_hidden_states=text).sample
    torch.testing.assert_close(made_there, expected)


# --- several at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_weighted_sum_of_adapters_has_the_weighted_sum_of_their_effects(kind: str) -> None:
    """On the output of the first layer of temporal attention, which is linear in all three
    kinds."""
    backbone = unet3d.tiny()
    path = paths(backbone)[0]
    layer: Any = backbone.network.get_submodule(path)
    start, x = fresh(kind, backbone), noise(4, 3, 16)
    sets = [filled(start), {name: -2 * t + 0.1 for name, t in filled(start, 0.2).items()}]

    def effect(tensors: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad(), built(kind, backbone, tensors).applied():
            return backbone.network.get_submodule(path)(x)

    plain = layer(x).detach()
    parts = [effect(tensors) - plain for tensors in sets]
    total = effect(weighted_sum(sets, [0.3, 1.5])) - plain
    torch.testing.assert_close(total, 0.3 * parts[0] + 1.5 * parts[1], atol=1e-5, rtol=1e-4)


def test_a_tensor_that_one_adapter_lacks_counts_as_zero() -> None:
    one, two = {"a": torch.ones(2)}, {"b": torch.ones(3)}
    found = weighted_sum([one, two], [2.0, 0.5])
    assert torch.equal(found["a"], torch.full((2,), 2.0))
    assert torch.equal(found["b"], torch.full((3,), 0.5))


def test_adapters_of_different_shapes_cannot_be_summed() -> None:
    message = r"a is \(2,\) and \(3,\); learn them at one size"
    with pytest.raises(BadMotion, match=message):
        weighted_sum([{"a": torch.ones(2)}, {"a": torch.ones(3)}], [1, 1])


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("embeddings", {"query_key.nowhere": torch.zeros(1, 3, 16)}, "belongs to no temporal"),
        (
            "embeddings",
            {"FIRST": torch.zeros(1, 3, 5)},
            "three dimensions, of which the last is 16",
        ),
        (
            "embeddings",
            {"FIRST": torch.zeros(0, 3, 16)},
            "three dimensions, of which the last is 16",
        ),
        ("lora", {"unet.nowhere.lora_A.weight": torch.zeros(2, 16)}, "a linear layer nowhere"),
        (
            "lora",
            {"LINEAR.lora_A.weight": torch.zeros(2, 16)},
            "is not a matrix of a LoRA of rank 2",
        ),
        (
            "lora",
            {"LINEAR.lora_B.weight": torch.zeros(16, 2)},
            "is not a matrix of a LoRA of rank 0",
        ),
        (
            "shifts",
            {"LINEAR.diff": torch.zeros(3, 3)},
            r"is not a difference of weights \(16, 16\)",
        ),
        ("shifts", {"LINEAR": torch.zeros(16, 16)}, "is not a difference of weights"),
    ],
)
def test_tensors_of_another_network_are_refused(
    kind: str, tensors: dict[str, Tensor], message: str
) -> None:
    backbone = unet3d.tiny()
    place = backbone.transformers_for(ROLE)[0]
    stands = {"FIRST": f"query_key.{place.path}", "LINEAR": f"unet.{place.attentions[0].query}"}
    named = {
        next((name.replace(k, v) for k, v in stands.items() if k in name), name): tensor
        for name, tensor in tensors.items()
    }
    with pytest.raises(BadMotion, match=message):
        built(kind, backbone, named)
    assert bare(backbone.network)


def test_embeddings_of_another_size_are_refused() -> None:
    backbone = unet3d.tiny()
    adapter = built("embeddings", backbone, filled(fresh("embeddings", backbone)))
    message = r"learned at \d+ positions .* make clips of the size"
    with pytest.raises(BadMotion, match=message), torch.no_grad(), adapter.applied():
        out(backbone, noise(*backbone.latent_shape(3, 16, 24)))
    assert bare(backbone.network)


# --- where they go --------------------------------------------------------------------------------


def test_zeroscope_has_the_temporal_transformers_of_its_architecture() -> None:
    """It has fifteen in its down and up blocks, the five of 1280 channels first. Each attends to
    the frames twice."""
    unet = zeroscope_unet()
    found = unet_roles.transformers(unet)
    temporal = found[ROLE]
    widths = [unet.get_submodule(place.attentions[0].query).in_features for place in temporal]
    assert widths == [1280] * 5 + [640] * 5 + [320] * 5
    assert all(len(place.attentions) == 2 for place in temporal)
    both = [layer for place in temporal for attention in place.attentions for layer in attention]
    own = [unet.get_submodule(path) for path in both]
    assert all(isinstance(layer, nn.Linear) for layer in own)
    # A key that takes words has as many inputs as they have channels, 1024.
    assert not [layer for layer in own if layer.in_features == 1024]
    every = [place.path for place in found["all_temporal_transformers"]]
    assert len(every) == 17
    assert {"transformer_in", "mid_block.temp_attentions.0"} <= set(every)
    assert len(found["spatial_transformers"]) == 16


def test_an_unknown_role_is_answered_with_a_similar_one() -> None:
    with pytest.raises(UnknownName, match="did you mean temporal_transformers"):
        unet3d.tiny().transformers_for("temporal_transformer")
