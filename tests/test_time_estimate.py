"""The forecast work of a run, against the work that the same run does on a CPU; and its rows."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from recast.motions.method import Sampling
from recast.motions.passes import Passes, RunPasses
from recast.networks import devices
from recast.networks.machine_speed import MachineSpeed
from recast.networks.operation_count import OperationCount, Operations
from recast.networks.tensor_memory import fused_attention
from recast.pipeline import doctor, memory_estimate, method_presets, model_loading, time_estimate
from recast.pipeline.time_estimate import MethodWork, TimeEstimate

from .inputs import random_clip
from .tiny_models import CPU, TRANSFORMERS, UNETS, pipeline

DEVICE = torch.device("cpu")
SAMPLING = Sampling(steps=2, guidance_scale=3.0)
SMALL = {"iterations": 1, "inner_steps": 2, "inversion_steps": 1, "steps": 2, "guided": 0.5}


def small(method: str, model: str) -> Any:
    """The first preset of a method with few steps and the guidance scale of `SAMPLING`."""
    config = next(iter(method_presets.presets(method).values()))
    if method == "ditflow":
        config = method_presets.preset(method, "generic")
    names = {field.name for field in dataclasses.fields(config)}
    values = {**SMALL, "guidance_scale": 3.0}
    return dataclasses.replace(config, **{k: v for k, v in values.items() if k in names})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "method"),
    [("unet3d", "dmt"), ("unet3d", "vmc"), ("wan", "ditflow"), ("wan", "flowmotion")],
)
def test_the_forecast_work_is_that_of_a_run(
    model: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text encoders are not forecast, and the loss and the adapters of a method neither; they are
    small beside the network."""
    tiny = {**UNETS, **TRANSFORMERS}[model]()
    pipeline(tiny).save_pretrained(tmp_path)
    monkeypatch.setattr(method_presets, "default_config", small)
    name, clip = str(tmp_path), random_clip(tiny)
    memory = memory_estimate.estimate_memory(name, CPU, DEVICE, [method], tuple(clip.shape[2:]))
    forecast = time_estimate.estimate_time(memory, name, CPU, DEVICE, [method]).methods[method]

    backbone = model_loading.load(name, CPU)
    encode_text = backbone.encode_text

    def uncounted(prompts: list[str]) -> Any:
        with _disable_current_modes():
            return encode_text(prompts)

    monkeypatch.setattr(backbone, "encode_text", uncounted)
    run = method_presets.configure(method, small(method, name))
    with fused_attention(), OperationCount() as learning:
        motion = run.learn(backbone, clip, "a square", SAMPLING).run()
    with fused_attention(), OperationCount() as transferring:
        backbone.decode(run.transfer(backbone, motion, "a cat", SAMPLING).run())
    for counted, said in ((learning, forecast.learn), (transferring, forecast.transfer)):
        share = 0.15 if method == "vmc" else 0.03  # vmc multiplies with what it has learned too
        assert said.flops == pytest.approx(counted.total.flops, rel=share)
        assert said.bytes == pytest.approx(counted.total.bytes, rel=0.3)


def test_windows_multiply_the_guided_steps(tmp_path: Path) -> None:
    """A step of the estimate is that of one window, and a pass is that of the whole clip."""
    pipeline(TRANSFORMERS["wan"]()).save_pretrained(tmp_path)
    totals = []
    for frames, window in ((9, None), (33, 9)):
        settings = dataclasses.replace(CPU, window=window)
        memory = memory_estimate.estimate_memory(
            str(tmp_path), settings, DEVICE, ["dmt"], (frames, 96, 160)
        )
        found = time_estimate.estimate_time(memory, str(tmp_path), settings, DEVICE, ["dmt"])
        assert found.methods["dmt"].passes.transfer.partial == 600
        totals.append(found.methods["dmt"].transfer.flops - memory.decode.operations.flops)
    windows = 7  # of 3 latent frames each, in 9 latent frames
    assert totals[1] == pytest.approx(windows * totals[0], rel=0.01)


WORK = MethodWork(
    passes=RunPasses(
        Passes(full=25, partial=1), Passes(full=50, partial=150, partial_backward=150)
    ),
    learn=Operations(1000, 0, 0),
    transfer=Operations(90_000, 0, 0),
)


def rows(monkeypatch: pytest.MonkeyPatch, device: str, *, here: bool) -> dict[str, str]:
    """The rows about time on a machine that makes 10 operations in a second."""
    estimate = TimeEstimate(
        full=Operations(100, 0, 0),
        methods={"dmt": WORK},
        undeclared=("tokenflow",),
        dtype=torch.float32,
    )
    speed = MachineSpeed(flops=10, bytes=1, call=1, overlaps=False)
    monkeypatch.setattr(time_estimate, "measure_speed", lambda *_: speed)
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])
    return dict(doctor.time_rows(estimate, torch.device(device), here=here))


def test_doctor_says_the_time_of_each_method(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch, "cpu", here=True)
    assert "about 10 s on cpu" in found["time"]
    assert "forecast" in found["time"]
    assert found["time of dmt"] == (
        "about 1.7 min to learn the motion of a clip once (26 passes), and about 2.5 h for each "
        "result (200 passes, 150 of them also backwards)"
    )
    assert found["time of tokenflow"].startswith("not forecast")


@pytest.mark.parametrize(
    ("device", "here", "reason"),
    [("cuda", True, "this machine has no cuda"), ("cpu", False, "about another machine")],
)
def test_without_the_device_doctor_says_the_work_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, here: bool, reason: str
) -> None:
    found = rows(monkeypatch, device, here=here)
    assert reason in found["time"]
    assert found["time of dmt"].startswith("1e+03 FLOP to learn")
    assert "about" not in found["time of dmt"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.123, "0.12 s"), (9.7, "9.7 s"), (89, "89 s"), (91, "1.5 min"), (1200, "20 min")),
        *((5400, "1.5 h"), (720_000, "200 h")),
    ],
)
def test_durations_have_two_digits_or_more(seconds: float, text: str) -> None:
    assert doctor.duration(seconds) == text
