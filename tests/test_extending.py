"""The examples of docs/extending: once they are installed as a package, they are found by name and
work."""

import json
import runpy
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recast
from recast import cli, registry
from recast.metrics.base import ClipView, MetricInput
from recast.motions.method import Sampling

from .inputs import noise

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SAMPLING = Sampling(steps=4, guidance_scale=3.0, seed=1)


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the package as pip does: its modules, and the entry points of its pyproject.toml."""
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "recast_examples-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n"
    )
    groups = project["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "\n".join(f"[{g}]\n" + "\n".join(f"{k} = {v}" for k, v in p.items()) for g, p in groups)
    )
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(info.parent))
    yield
    for name in [name for name in sys.modules if name.startswith("recast_examples")]:
        del sys.modules[name]


def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    assert cli.main(["shapes", "render", "--out", str(path)]) == 0
    return path


@pytest.mark.slow
def test_the_example_of_a_whole_run_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip(tmp_path)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "whole_run.py"))
    assert capsys.readouterr().out.splitlines()[-1] == "result"
    assert (tmp_path / "result" / "video.mp4").is_file()


def test_the_three_examples_are_found_by_name() -> None:
    assert "pixels" in registry.names("backbones")
    assert "ilvr" in registry.names("methods")
    assert "flicker" in registry.names("metrics")
    assert registry.load("methods", "ilvr").Method.name == "ilvr"


def test_the_backbone_learns_and_transfers() -> None:
    backbone = recast.load("pixels")
    video = recast.Video(np.full((8, 32, 32, 3), 90, np.uint8), 8.0)
    motion = recast.learn(backbone, video, config=recast.presets("dmt")["shapes"])
    result = recast.transfer(backbone, motion, "a red circle", steps=motion.metadata["steps"])
    assert result.frames.shape == (8, 32, 32, 3)


def test_the_backbone_follows_the_noise_convention() -> None:
    """Both estimates add up to x_t: x_t = alpha·x0 + sigma·eps."""
    backbone = registry.load("backbones", "pixels").tiny()
    x = noise(1, 3, 4, 8, 8)
    t = torch.tensor(0.3, dtype=torch.float64)
    out = backbone.denoiser(backbone.encode_text(["a cat"]))(x, t)
    torch.testing.assert_close(0.7 * out.x0 + 0.3 * out.eps, x, atol=1e-6, rtol=0)
    assert backbone.nfe == 1


@pytest.mark.parametrize("name", ["pixels", "gaussian", "unet3d", "wan"])
def test_the_method_runs_on_any_backbone(name: str) -> None:
    module, backbone = registry.load("methods", "ilvr"), registry.load("backbones", name).tiny()
    own = backbone.defaults
    video = torch.rand(1, 3, own.frames, own.height, own.width) * 2 - 1
    method = module.Method(module.Config())
    motion = method.learn(backbone, video, "", SAMPLING).run()
    latents = method.transfer(backbone, motion, "a cat", SAMPLING).run()
    assert latents.shape == motion.tensors["latents"][None].shape
    assert torch.isfinite(latents).all()


def test_the_method_follows_the_low_frequencies_of_the_source() -> None:
    """The more levels it replaces them at, the closer the result is to another sample."""
    ilvr, unguided = (registry.load("methods", name) for name in ("ilvr", "unguided"))
    backbone = registry.load("backbones", "gaussian").tiny()
    plain = unguided.Method(unguided.Config())
    size = plain.learn(backbone, torch.zeros(1, 3, 4, 16, 16), "", SAMPLING).run()
    free = Sampling(steps=8, guidance_scale=1, seed=7)
    video = plain.transfer(backbone, size, "", free).run()
    correlations = []
    for share in (0.0, 0.5, 1.0):
        method = ilvr.Method(ilvr.Config(share=share))
        motion = method.learn(backbone, video, "", free).run()
        again = Sampling(steps=8, guidance_scale=1, seed=8)
        latents = method.transfer(backbone, motion, "", again).run()
        low = [ilvr.low_pass(clip, 2) for clip in (latents, video)]
        changes = [(clip - clip.mean((2, 3, 4), keepdim=True)).flatten() for clip in low]
        correlations.append(float(torch.corrcoef(torch.stack(changes))[0, 1]))
    assert correlations == sorted(correlations)
    assert abs(correlations[0]) < 0.1
    assert correlations[-1] > 0.4


@pytest.mark.parametrize("name", ["pixels", "unet3d", "wan"])
def test_features_are_read_by_role_and_have_a_gradient(name: str) -> None:
    features = import_module("recast_examples.features")
    backbone = registry.load("backbones", name).tiny()
    own = backbone.defaults
    shape = backbone.latent_shape(own.frames, own.height, own.width)
    x = noise(*shape).requires_grad_()
    t = backbone.schedule.sized(shape).grid(4)[1]
    read = features.motion_features(backbone, x, t, "a cat")
    assert set(read) == {tap.path for tap in backbone.taps("motion")}
    (one,) = read.values()
    assert one.ndim == 5
    assert one.shape[:2] == (1, shape[2])
    (gradient,) = torch.autograd.grad(one.square().sum(), x)
    assert float(gradient.abs().sum()) > 0


def test_the_low_pass_filter_keeps_a_plain_frame() -> None:
    ilvr = import_module("recast_examples.ilvr")
    plain = torch.full((1, 2, 3, 8, 8), 0.25)
    torch.testing.assert_close(ilvr.low_pass(plain, 4), plain)
    checkers = (torch.arange(8) % 2 * 2.0 - 1).expand(1, 2, 3, 8, 8)
    assert float(ilvr.low_pass(checkers, 2).abs().max()) < 1e-6


def test_the_metric_agrees_with_a_calculation_by_hand() -> None:
    """Brightness 0, 1, 0.2 has changes of 1 and 0.8, so the mean is 0.9."""
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[1], frames[2] = 255, 51
    metric = registry.load("metrics", "flicker").METRICS["flicker"]
    assert metric.score(MetricInput(result=ClipView(frames=frames))) == pytest.approx(0.9)
    assert metric.score(MetricInput(result=ClipView(frames=frames[:1]))) == 0


def test_the_command_line_lists_all_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = clip(tmp_path), tmp_path / "result"
    words = ["transfer", str(source), "a cat", "--backbone", "pixels", "--method", "ilvr"]
    assert cli.main([*words, "--preset", "coarse", "--share", "0.5", "--out", str(out)]) == 0
    settings: dict[str, Any] = json.loads((out / "manifest.json").read_text())["config"]["config"]
    assert settings == {"factor": 4, "share": 0.5}
    capsys.readouterr()
    assert cli.main(["evaluate", str(source), str(out), "--json"]) == 0
    assert "flicker" in json.loads(capsys.readouterr().out)["scores"]
