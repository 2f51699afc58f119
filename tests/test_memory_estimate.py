"""The estimated memory of a run, against what the same run takes on a CPU.

Two measures are independent of the estimate: the tensors that autograd saves, and the allocator's
own record of every block.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ModelMixin
from huggingface_hub import constants
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from recast import registry
from recast.backbones import unet3d, wan
from recast.backbones.base import Backbone, Conditioning, Settings
from recast.bench import runner
from recast.cli import analysis
from recast.errors import BadModel, OutOfMemory
from recast.feature_guidance.taps import read_features, select_taps
from recast.media.video import Video
from recast.networks import devices
from recast.networks.devices import MainMemory
from recast.networks.tensor_memory import TensorMemory
from recast.pipeline import config, memory_estimate, method_presets, model_loading, run
from recast.pipeline.memory_estimate import MemoryEstimate, StageMemory
from recast.pipeline.motion_cache import MotionCache

from .autograd_memory import saved_bytes
from .tiny_models import CPU, TRANSFORMERS, pipeline

GIB = 2**30
SMALL = (33, 96, 160)
CUDA = torch.device("cuda")


@pytest.fixture(scope="module", params=["shapes", "wan", "5b", "hunyuan"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model on this machine."""
    if request.param == "shapes":
        return "shapes"
    folder = tmp_path_factory.mktemp(request.param)
    pipeline(TRANSFORMERS[request.param]()).save_pretrained(folder)
    return str(folder)


def size(name: str) -> tuple[int, int, int]:
    return (4, 64, 64) if name == "shapes" else SMALL


@pytest.fixture(scope="module")
def estimate(model: str) -> MemoryEstimate:
    """The estimate for a run of the model on the CPU, guided by dmt."""
    return memory_estimate.estimate_memory(model, CPU, torch.device("cpu"), ["dmt"], size(model))


def step(backbone: Backbone, x: Tensor, text: Conditioning) -> Callable[[], None]:
    """A guided step of dmt's preset, without its loss."""
    taps = select_taps(backbone, ["motion"])
    t = backbone.schedule.sized(x.shape).grid(1)[0]
    start = x.clone().requires_grad_(True)

    def once() -> None:
        seen = read_features(backbone, backbone.denoiser(text), taps, start, t)
        with torch.enable_grad():
            total = sum(features.sum() for features in seen.values())
        torch.autograd.grad(total, start)

    return once


def allocated(work: Callable[[], object], trace: Path) -> int:
    """The most bytes that the CPU's allocator had given out at once during the work."""
    work()  # tensors that are made only once do not count
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    blocks = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: float(e["ts"]))
    held = most = 0
    for block in blocks:
        held += block["args"]["Bytes"]
        most = max(most, held)
    return most


def loaded(name: str, checkpointing: bool = False) -> tuple[Backbone, Tensor, Tensor]:
    backbone = model_loading.load(name, replace(CPU, gradient_checkpointing=checkpointing))
    shape = backbone.latent_shape(*size(name))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return backbone, x, backbone.encode_text(["a"])


@pytest.mark.slow
def test_the_estimate_matches_autograd_and_the_allocator(
    model: str, estimate: MemoryEstimate, tmp_path: Path
) -> None:
    """The workspaces of kernels are not estimated."""
    # For a mask over its text, the CPU's attention takes blocks of scores besides.
    share = 0.4 if "hunyuan" in model else 0.1
    backbone, x, text = loaded(model)
    plain, lean = estimate.guided_steps["dmt"]
    # Features, x_t and tables of positions live beside what is saved.
    assert saved_bytes(backbone, step(backbone, x, text)) == pytest.approx(plain.saved, rel=0.1)
    found = allocated(step(backbone, x, text), tmp_path / "guided.json")
    assert found == pytest.approx(plain.peak, rel=share)
    denoise, t = backbone.cfg_denoiser("a", "b", 3.0), backbone.schedule.sized(x.shape).grid(1)[0]
    with torch.no_grad():
        found = allocated(lambda: denoise(x, t), tmp_path / "plain.json")
    assert found == pytest.approx(estimate.sampling.peak, rel=share)
    backbone, x, text = loaded(model, checkpointing=True)
    found = allocated(step(backbone, x, text), tmp_path / "lean.json")
    assert found == pytest.approx(lean.peak, rel=share)
    assert lean.saved < plain.saved / 2


def spare(model: str) -> int:
    """Bytes of CogVideoX's tables of 540 positions, which a CPU has already and others get copied,
    and of a number, such as a loss."""
    return 8 + (2 * (2 * 540 * 16 * 4) if "5b" in model else 0)


def test_the_estimate_matches_the_tensors_of_a_run_on_the_cpu(
    model: str, estimate: MemoryEstimate
) -> None:
    for checkpointing in (False, True):
        once = step(*loaded(model, checkpointing))
        once()
        with TensorMemory() as ledger:
            once()
        assert 0 <= estimate.guided_steps["dmt"][checkpointing].peak - ledger.peak <= spare(model)


def test_two_prompts_are_estimated_as_one_batch_of_two(
    model: str, estimate: MemoryEstimate
) -> None:
    """Also for networks that take the guidance scale as an input and could do with one prompt."""
    backbone, x, _ = loaded(model)
    t = backbone.schedule.sized(x.shape).grid(1)[0]
    denoise = backbone.cfg_denoiser("a", "b", 3.0)
    with torch.no_grad():
        denoise(x, t)
        before = backbone.nfe
        with TensorMemory() as ledger:
            denoise(x, t)
    assert backbone.nfe - before == 2
    assert 0 <= estimate.sampling.peak - ledger.peak <= spare(model)


def test_estimated_weights_have_the_size_of_loaded_weights(model: str) -> None:
    for dtype in ("float32", "bfloat16"):
        settings = Settings(device="cpu", dtype=dtype)
        backbone: Any = model_loading.load(model, settings)
        sizes = [
            sum(p.nbytes for p in n.parameters()) + sum(b.nbytes for b in n.buffers())
            for n in backbone.parts.networks
        ]
        found = memory_estimate.weights_by_offload(model, settings, torch.device("cpu"))
        assert found["none"] == sum(sizes) > found["networks"] == max(sizes) > found["blocks"]


# In millions: those of docs/reference/models.md, which come from the sizes of published files, and
# of Stable Diffusion's parts, which are widely published.
T5, UMT5, CLIP, VAE = 4762, 5681, 123, 84
COUNTS = {
    "zeroscope": [1411, VAE, 340],
    "modelscope": [1411, VAE, 340],
    "animatediff": [1313, VAE, CLIP],
    "sd": [860, VAE, CLIP],
    "sd2.1": [866, VAE, 340],
    "cogvideox-2b": [1694, 216, T5],
    "cogvideox-5b": [5570, 216, T5],
    "cogvideox1.5-5b": [5571, 216, T5],
    "wan": [1419, 127, UMT5],
    "wan-14b": [14288, 127, UMT5],
    "wan2.2-5b": [5000, 705, UMT5],
    "wan2.2-a14b": [14288, 14288, 127, UMT5],
    "vace": [2154, 127, UMT5],
    "vace-14b": [17338, 127, UMT5],
    "ltx": [1923, 419, T5],
    "hunyuan": [12821, 246, 7505, CLIP],
}


def published() -> list[str]:
    modules = [registry.load("backbones", name) for name in registry.names("backbones")]
    return [alias for module in modules for alias in getattr(module, "PUBLISHED", ())]


def test_every_published_config_is_known_here() -> None:
    assert sorted(published()) == sorted(COUNTS)


@pytest.mark.parametrize("alias", COUNTS)
def test_published_configs_are_of_the_published_size(alias: str) -> None:
    with model_loading.load_on_meta(alias, Settings(), CUDA) as (backbone, outline):
        counts = [sum(p.numel() for p in network.parameters()) for network in outline.networks]
        own = backbone.defaults
        assert backbone.latent_shape(own.frames, own.height, own.width)[0] == 1
    assert [round(count / 1e6) for count in counts] == COUNTS[alias]
    assert all(weight.is_meta for network in outline.networks for weight in network.parameters())


def test_random_weights_have_the_shapes_and_precision_of_the_real_ones() -> None:
    real, drawn = (
        make("shapes", CPU) for make in (model_loading.load, model_loading.load_with_random_weights)
    )
    states = [one.network.state_dict() for one in (real, drawn)]
    kinds = [{name: (w.shape, w.dtype) for name, w in state.items()} for state in states]
    assert kinds[0] == kinds[1]
    assert real.fingerprint != drawn.fingerprint
    x = torch.randn(drawn.latent_shape(2, 64, 64))
    out = drawn.denoiser(drawn.encode_text(["a red circle"]))(x, drawn.schedule.grid(2)[0])
    assert out.x0.std() > 0


@pytest.fixture
def cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Mapping[str, Any]], Path]:
    """A function that puts a hub id and its files, by name, into a hub cache that is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(hub: str, files: Mapping[str, Any]) -> Path:
        model = tmp_path / "hub" / f"models--{hub.replace('/', '--')}"
        (model / "refs").mkdir(parents=True)
        (model / "refs/main").write_text("0123abcd")
        for name, content in files.items():
            (model / "snapshots/0123abcd" / name).parent.mkdir(parents=True, exist_ok=True)
            (model / "snapshots/0123abcd" / name).write_text(json.dumps(dict(content)))
        return model / "snapshots/0123abcd"

    return put


def default_size(name: str) -> tuple[int, int, int, float]:
    """The default frames, height, width and frame rate of the model of that name."""
    with model_loading.load_on_meta(name, Settings(), CUDA) as (backbone, _):
        own = backbone.defaults
    return own.frames, own.height, own.width, own.fps


OWN_SIZES = {
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ("wan2.2-5b", (121, 704, 1280, 24)),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": ("wan2.2-a14b", (81, 720, 1280, 16)),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("wan", (81, 480, 832, 16)),
    "cerspense/zeroscope_v2_576w": ("zeroscope", (24, 320, 576, 8)),
}


@pytest.mark.parametrize("hub", OWN_SIZES)
def test_a_hub_id_is_its_alias(hub: str, cache: Callable[..., Path]) -> None:
    """Whether the model is downloaded or not."""
    alias, expected = OWN_SIZES[hub]
    assert default_size(hub) == default_size(alias) == expected
    cache(hub, registry.load("backbones", model_loading.aliases()[alias]).PUBLISHED[alias])
    assert default_size(hub) == default_size(alias) == expected


def test_default_sizes_do_not_depend_on_the_name_of_the_folder(cache: Callable[..., Path]) -> None:
    """The name of a snapshot in the hub's cache is a hash. UNets are recognised by name only."""
    for hub in ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"):
        alias, expected = OWN_SIZES[hub]
        assert default_size(str(cache(hub, wan.PUBLISHED[alias]))) == expected
    snapshot = cache("somebody/zeroscope_v2_576w", unet3d.PUBLISHED["zeroscope"])
    assert default_size("somebody/zeroscope_v2_576w") == (24, 320, 576, 8)
    assert default_size(str(snapshot)) == (16, 256, 256, 8)


@pytest.mark.parametrize("name", ["ltx", "Lightricks/LTX-Video", "wan2.2-a14b"])
def test_an_incomplete_download_is_estimated_from_the_published_configs(
    name: str, cache: Callable[..., Path]
) -> None:
    expected = default_size(name)
    for hub in ("Lightricks/LTX-Video", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"):
        cache(hub, {"model_index.json": {}})
    assert default_size(name) == expected


def test_half_precision_halves_the_weights_that_are_not_kept_in_float32() -> None:
    """Wan's VAE, norms and time embedding stay in float32."""
    whole = memory_estimate.weights_by_offload("wan", Settings(dtype="float32"), CUDA)["none"]
    found = memory_estimate.weights_by_offload("wan", Settings(), CUDA)
    half, largest = found["none"], found["networks"]
    vae = 4 * 126_892_531
    assert largest == 2 * 5_680_910_336
    assert (whole + vae) / 2 < half < (whole + vae) / 2 * 1.01


def test_a_model_without_known_configs_is_refused() -> None:
    with pytest.raises(BadModel, match="showlab/show-1-base is not downloaded yet"):
        memory_estimate.weights_by_offload("show1", Settings(), CUDA)
    with pytest.raises(BadModel, match="somebody/model is not downloaded yet"):
        memory_estimate.weights_by_offload("somebody/model", Settings(), CUDA)


def test_the_peak_is_that_of_the_largest_stage() -> None:
    def stage(weights: int, most: int) -> StageMemory:
        return StageMemory(weights, weights // 5, 0, most)

    estimate = MemoryEstimate(
        size=(1, 8, 8),
        networks=(("Net", 10), ("Text", 40), ("Vae", 5)),
        loading=55,
        text=stage(40, 0),
        sampling=stage(10, 3),
        encode=stage(5, 2),
        decode=stage(5, 4),
        guided_steps={"dmt": (stage(10, 60), stage(10, 20))},
        notes={},
    )
    assert estimate.peak(None, checkpointing=False, offload="none") == 55 + 4
    assert estimate.peak(None, checkpointing=False, offload="networks") == 40
    assert estimate.peak("dmt", checkpointing=False, offload="none") == 55 + 60
    assert estimate.peak("dmt", checkpointing=True, offload="none") == 55 + 20
    assert estimate.peak("dmt", checkpointing=False, offload="networks") == 70
    assert estimate.peak("dmt", checkpointing=True, offload="blocks") == 2 + 20


def test_windows_bound_the_saved_tensors_of_a_guided_step(tmp_path: Path) -> None:
    pipeline(TRANSFORMERS["wan"]()).save_pretrained(tmp_path)

    def kept(frames: int, window: int | None) -> int:
        settings = replace(CPU, window=window)
        size = (frames, 96, 160)
        estimate = memory_estimate.estimate_memory(
            str(tmp_path), settings, torch.device("cpu"), ["dmt"], size
        )
        return estimate.guided_steps["dmt"][0].saved

    assert kept(33, 9) == kept(9, None) < kept(33, None) / 2


def test_methods_without_taps_get_a_note() -> None:
    names = ["sdedit", "vmc", "dmt"]
    estimate = memory_estimate.estimate_memory(
        "shapes", CPU, torch.device("cpu"), names, (1, 16, 16)
    )
    assert list(estimate.guided_steps) == ["dmt"]
    assert estimate.notes["sdedit"].startswith("uses no features")
    assert estimate.notes["vmc"].startswith("trains")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = np.zeros((9, 480, 832, 3), np.uint8)
    return Video(frames, 16.0).save(tmp_path / "clip.mp4")


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let every device have so many bytes, and let reading weights be a mistake."""

    def read(*args: Any, **options: Any) -> None:
        raise AssertionError("gigabytes are read")

    for library in (ModelMixin, PreTrainedModel):
        monkeypatch.setattr(library, "from_pretrained", read)
    monkeypatch.setattr(devices, "device_of", lambda name: CUDA)
    monkeypatch.setattr(devices, "main_memory", lambda: MainMemory(64 * GIB, 0))
    return lambda size: monkeypatch.setattr(devices, "total_memory", lambda device: size)


@pytest.mark.parametrize(
    ("has", "offload", "words"),
    [
        (12, "none", "13.7 GiB, and cuda has 12.0 GiB; what helps: `offload=networks` .10.6 GiB"),
        (8, "none", "13.7 GiB, and cuda has 8.0 GiB; what helps: `offload=blocks` .2.2 GiB"),
        (1, "blocks", "2.2 GiB, and cuda has 1.0 GiB; what helps: a smaller model"),
    ],
)
def test_weights_that_cannot_fit_are_not_read(
    tight: Callable[[int], None], clip: Path, tmp_path: Path, has: int, offload: Any, words: str
) -> None:
    tight(has * GIB)
    job = config.RunConfig(
        clip=clip,
        prompt="a star",
        backbone="wan",
        settings=Settings(offload=offload),
        out=tmp_path / "out",
        config=method_presets.preset("dmt", "paper"),
    )
    with pytest.raises(OutOfMemory, match=words):
        list(run.transfer(job, cache=MotionCache(tmp_path / "store", 0)))
    assert not (tmp_path / "out").exists()


def test_benchmarks_and_analyses_read_no_weights_that_cannot_fit(
    tight: Callable[[int], None], tmp_path: Path
) -> None:
    tight(12 * GIB)
    with pytest.raises(OutOfMemory, match=r"13\.7 GiB, and cuda has 12\.0 GiB"):
        runner.bench(runner.BenchConfig(suite="shapes", backbone="wan", out=tmp_path)).run()
    for analyse in (analysis.probe, analysis.retrieve):
        with pytest.raises(OutOfMemory, match=r"13\.7 GiB, and cuda has 12\.0 GiB"):
            analyse(["--backbone", "wan"], "recast analyze", "")


def test_a_model_with_small_files_fits_without_being_built(
    tight: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tight(2**20)
    with pytest.raises(OutOfMemory, match="the weights of shapes alone take"):
        memory_estimate.check_fits("shapes", Settings())

    def build(*args: Any) -> None:
        raise AssertionError("the model is built")

    monkeypatch.setattr(memory_estimate, "weights_by_offload", build)
    with pytest.raises(AssertionError, match="the model is built"):
        memory_estimate.check_fits("shapes", Settings())
    tight(GIB)
    memory_estimate.check_fits("shapes", Settings())
    monkeypatch.setattr(devices, "main_memory", lambda: MainMemory(2**20, 0))
    with pytest.raises(AssertionError, match="the model is built"):
        memory_estimate.check_fits("shapes", Settings())


def test_offloaded_weights_must_fit_into_main_memory(
    tight: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(ram: int, swap: int) -> None:
        memory = MainMemory(ram * GIB, swap * GIB)
        monkeypatch.setattr(devices, "main_memory", lambda: memory)

    tight(14 * GIB)
    main(8, 2)
    for how in ("networks", "blocks"):
        message = (
            f"13.7 GiB, which `offload={how}` keeps in main memory, and that has 8.0 GiB and 2.0"
        )
        with pytest.raises(OutOfMemory, match=message):
            memory_estimate.check_fits("wan", Settings(offload=how))
    memory_estimate.check_fits("wan", Settings())
    main(8, 6)
    memory_estimate.check_fits("wan", Settings(offload="networks"))
    # What would be refused is no advice.
    tight(12 * GIB)
    main(8, 2)
    with pytest.raises(OutOfMemory, match="what helps: a smaller model, or a larger device"):
        memory_estimate.check_fits("wan", Settings())


def test_main_memory_is_read_with_swap_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       24684000 kB\nMemFree: 1 kB\nSwapTotal:       2048 kB\n")
    monkeypatch.setattr(devices, "MEMINFO", file)
    assert devices.main_memory() == (24684000 * 1024, 2048 * 1024)
    assert devices.total_memory(torch.device("cpu")) == (24684000 + 2048) * 1024
    file.unlink()
    assert devices.main_memory() is devices.total_memory(torch.device("cpu")) is None


def test_weights_in_8_bits_take_their_full_size_while_loading() -> None:
    size = (1, 16, 16)
    whole, small = (
        memory_estimate.estimate_memory(
            "shapes", Settings(device="cpu", weights=kind), CUDA, (), size
        )
        for kind in ("full", "int8")
    )
    assert small.loading == whole.loading == whole.weights > small.weights


def test_weights_that_may_fit_are_not_refused(tight: Callable[[int], None]) -> None:
    tight(14 * GIB)
    memory_estimate.check_fits("wan", Settings())
    memory_estimate.check_fits("show1", Settings())  # of which nothing is known
