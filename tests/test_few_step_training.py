"""The training of a LoRA with which a shipped model samples in few steps."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from recast.diffusion.noise_schedule import Cosine, Flow, Schedule
from recast.errors import BadCall
from recast.pipeline import model_loading
from recast.worlds.shapes.dataset import DATASET
from recast.worlds.training import few_steps
from recast.worlds.training.few_steps import FewStepConfig, train

from .tiny_models import CPU

SHAPES_DIT = Path(model_loading.source_of("shapes-dit"))


def test_the_teachers_steps_must_be_a_multiple_of_the_students() -> None:
    with pytest.raises(BadCall, match="multiple of `student_steps`, got 10 and 4"):
        FewStepConfig(model=SHAPES_DIT, out=Path("unused"), student_steps=4, teacher_steps=10)


def test_the_spacing_of_empty_captions_is_checked() -> None:
    with pytest.raises(BadCall, match="`empty_caption_every` must be at least 1, got 0"):
        FewStepConfig(model=SHAPES_DIT, out=Path("unused"), empty_caption_every=0)


def test_a_unet_is_not_compiled() -> None:
    model = Path(model_loading.source_of("shapes"))
    with pytest.raises(BadCall, match="`compile` needs a model with a transformer"):
        FewStepConfig(model=model, out=Path("unused"), compile=True)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_blocks_are_compiled_on_request(compiled: bool) -> None:
    config = FewStepConfig(model=SHAPES_DIT, out=Path("unused"), compile=compiled)
    blocks = few_steps._Teacher(config, DATASET).network.blocks
    assert {block._compiled_call_impl is not None for block in blocks} == {compiled}


@pytest.mark.slow
def test_loading_the_model_for_four_steps_says_nothing() -> None:
    code = "from recast.pipeline.model_loading import load; load('shapes-dit@4steps')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    "schedule",
    [Flow(shift=3.0), Cosine(), Cosine(prediction="epsilon")],
    ids=["flow", "v", "epsilon"],
)
def test_one_step_with_the_target_leads_to_the_end_of_a_segment(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    x, arrived = torch.randn(2, 3, 2, 4, 4, 4, generator=generator).unbind()
    level, final = schedule.grid(4)[[0, 1, 2]], schedule.grid(4)[[1, 2, 4]]
    output = few_steps._output_of_step(schedule, x, level, arrived, final)
    estimates = schedule.denoised(output, x, level)
    torch.testing.assert_close(schedule.noised(*estimates, final), arrived, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes-dit", "shapes"])
def test_a_student_learns_to_reach_the_teachers_samples_in_one_step(
    tmp_path: Path, name: str
) -> None:
    model = Path(model_loading.source_of(name))
    config = FewStepConfig(
        model=model, out=tmp_path, student_steps=1, teacher_steps=2, clips=1, steps=12, batch=2
    )
    job = train(config, DATASET)
    steps = [event for event in job if event.stage == "few_steps"]
    assert [event.index for event in steps] == [12]
    file = job.result
    assert file.stat().st_size < 12e6

    states = torch.from_numpy(np.load(tmp_path / "trajectories" / "000000.npy"))
    assert states.shape == (1, 3, 8, 16, 8, 8)
    caption = DATASET.caption(DATASET.sample(0), np.random.default_rng([0, 0]))
    teacher = model_loading.load(name, CPU)
    levels = teacher.schedule.refine(teacher.schedule.grid(1), 2)
    with torch.no_grad():
        for index, (level, after) in enumerate(pairwise(levels)):
            x = states[:, index]
            estimates = teacher.cfg_denoiser(caption, "", 4.0)(x, level)
            expected = teacher.schedule.noised(*estimates, after)
            error = (expected - states[:, index + 1]).square().mean() / (
                expected - x
            ).square().mean()
            assert float(error) < 1e-3  # the training runs in bfloat16 where that is faster

        errors = []
        for lora in ((), (f"{file}",)):
            student = model_loading.load(name, replace(CPU, lora=lora))
            x0 = student.cfg_denoiser(caption, "", 1.0)(states[:, 0], levels[0]).x0
            errors.append(float((x0 - states[:, -1]).square().mean()))
    assert errors[1] < 0.7 * errors[0]
