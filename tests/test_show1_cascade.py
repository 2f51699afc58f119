"""Show-1's cascade: the inputs of each stage, its results, and a run that ends with it."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recast import api
from recast.backbones.base import Conditioning
from recast.backbones.show1 import backbone as show1
from recast.backbones.show1.backbone import Show1
from recast.backbones.show1.cascade import STAGE_SETTINGS, Stage, StageName, StageSettings
from recast.events import Event, Job, Preview, Step
from recast.media import video
from recast.media.video import Video
from recast.methods import unguided
from recast.pipeline import run
from recast.pipeline.config import Draw, RunConfig
from recast.pipeline.motion_cache import MotionCache
from recast.pipeline.source_clip import Source, repeat_frames

from .inputs import noise
from .tiny_models import CPU


@pytest.fixture(scope="module")
def saved(show1_folder: Path) -> Path:
    return show1_folder


# The cascade


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps for every window."""
    for name, own in STAGE_SETTINGS.items():
        short = StageSettings(
            steps=2, guidance_scale=own.guidance_scale, channels=own.channels, level=own.level
        )
        monkeypatch.setitem(STAGE_SETTINGS, name, short)  # type: ignore[arg-type]


def ended(job: Job[Tensor]) -> tuple[list[Event], Tensor]:
    return list(job), job.result


@pytest.mark.usefixtures("quick")
def test_the_cascade_makes_29_large_frames_from_8(saved: Path) -> None:
    backbone = show1.load(str(saved), CPU)
    keyframes = noise(1, 3, 8, 8, 8).clamp(-1, 1)
    events, made = ended(backbone.finish(keyframes, "a cat", 3))
    assert made.shape == (1, 3, 29, 32, 32)
    assert float(made.abs().max()) <= 1
    steps = [(e.stage, e.index, e.total) for e in events if isinstance(e, Step)]
    assert steps == [
        *(("interpolate", i + 1, 14) for i in range(14)),
        *(("enlarge the first frame", i + 1, 2) for i in range(2)),
        *(("enlarge", i + 1, 8) for i in range(8)),
    ]
    assert backbone.nfe == 2 * len(steps)  # guidance is two clips to a step


@pytest.mark.usefixtures("quick")
def test_a_finished_clip_depends_on_its_prompt_and_seed(saved: Path) -> None:
    backbone, keyframes = show1.load(str(saved), CPU), noise(1, 3, 2, 8, 8).clamp(-1, 1)
    calls = [("a cat", 3), ("a cat", 3), ("a dog", 3), ("a cat", 4)]
    first, again, *others = (ended(backbone.finish(keyframes, *call))[1] for call in calls)
    assert torch.equal(again, first)
    assert not any(torch.equal(other, first) for other in others)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("left_out", "shape"),
    [
        (("sr1", "sr1_image"), (1, 3, 9, 8, 8)),
        (("interpolation",), (1, 3, 3, 32, 32)),
        (("interpolation", "sr1_image"), (1, 3, 3, 32, 32)),
        (("interpolation", "sr1", "sr1_image"), (1, 3, 3, 8, 8)),
    ],
)
def test_missing_stages_are_left_out(
    folder: Path, left_out: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    for name in left_out:
        shutil.rmtree(folder / name)
    backbone, keyframes = show1.load(str(folder), CPU), 2 * noise(1, 3, 3, 8, 8)
    _, video = ended(backbone.finish(keyframes, "a cat", 0))
    assert video.shape == shape
    _, one = ended(backbone.finish(keyframes[:, :, :1], "a cat", 0))
    assert one.shape == (1, 3, 1, *shape[3:])
    if len(left_out) == 3:
        assert torch.equal(video, keyframes.clamp(-1, 1))


class Spy(nn.Module):
    """A network that records its inputs and whose output is its noisy input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[Tensor, Any]] = []

    def forward(
        self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, **named: Any
    ) -> tuple[Tensor]:
        self.seen.append((x, class_labels))
        return (torch.cat([x[:, :3], x[:, :3]], 1),)


def stage(name: StageName, unet: nn.Module) -> Stage:
    """A stage around a network, with the schedules of the released model."""
    return Stage(
        settings=STAGE_SETTINGS[name],
        unet=unet,
        scheduler=show1.tiny().parts.scheduler,
        noising={"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"},
    )


def with_spies(*names: StageName) -> tuple[Show1, dict[StageName, Spy]]:
    """The tiny model with these stages, whose networks only note their inputs."""
    spies, keyframes = {name: Spy() for name in names}, show1.tiny()
    stages = {name: stage(name, spy) for name, spy in spies.items()}
    return Show1(keyframes.parts, keyframes.defaults, CPU, stages), spies


@pytest.mark.usefixtures("quick")
def test_interpolation_reads_both_keyframes_and_their_blend() -> None:
    backbone, spies = with_spies("interpolation", "sr1", "sr1_image")
    keyframes = noise(1, 3, 3, 8, 8).clamp(-1, 1)
    ended(backbone.finish(keyframes, "a cat", 0))
    given = [x for x, _ in spies["interpolation"].seen]
    assert {tuple(x.shape) for x in given} == {(2, 7, 5, 8, 8)}
    for gap in (0, 1):
        start, blend, known = given[2 * gap][0].split([3, 3, 1])
        for frame in range(5):
            wanted = torch.lerp(keyframes[0, :, gap], keyframes[0, :, gap + 1], frame / 4)
            torch.testing.assert_close(blend[:, frame], wanted)
        assert known[0, :, 0, 0].tolist() == [1, 0, 0, 0, 1]
        assert torch.equal(start, given[0][0, :3])  # one noise for all gaps


@pytest.mark.usefixtures("quick")
def test_super_resolution_reads_noised_frames_and_the_last_known_one() -> None:
    backbone, spies = with_spies("sr1", "sr1_image")
    keyframes = 0.9 * torch.ones(1, 3, 10, 8, 8)
    _, video = ended(backbone.finish(keyframes, "a cat", 0))
    assert video.shape == (1, 3, 10, 32, 32)
    seen = spies["sr1"].seen
    assert [tuple(x.shape) for x, _ in seen] == 2 * [(2, 6, 8, 32, 32)] + 2 * [(2, 6, 3, 32, 32)]
    assert [labels.tolist() for _, labels in seen] == 4 * [[250, 250]]
    assert [labels.tolist() for _, labels in spies["sr1_image"].seen] == 2 * [[150, 150]]
    first, second = seen[0][0][0, 3:], seen[2][0][0, 3:]
    image = spies["sr1_image"].seen[0][0][0, 3:]
    # cos² at level 250 leaves 0.92 of the signal, and the noise is √(1 − 0.92²).
    for noised, level in ((first[:, 1:], 250), (image, 150)):
        alpha = math.cos(((level + 1) / 1000 + 0.008) / 1.008 * math.pi / 2)
        assert float(noised.mean()) == pytest.approx(0.9 * alpha, abs=0.02)
        assert float(noised.std()) == pytest.approx(math.sqrt(1 - alpha**2), rel=0.05)
    # What the first window ends on, the second begins with; the others are noised.
    assert torch.equal(second[:, 0], video[0, :, 7])
    assert float((second[:, 1:] - 0.9).std()) > 0.2


def test_a_stage_is_guided_and_thresholded_as_in_its_scheduler() -> None:
    """For a network whose output is zero, only the threshold has an effect."""
    thresholded = stage("interpolation", Spy())
    denoise = thresholded.denoiser(
        lambda network, x, t, text, level: torch.zeros(len(x), 6, *x.shape[2:]),
        Conditioning(text=torch.zeros(2, 5, 16)),
        torch.zeros(1, 4, 5, 8, 8),
    )
    t, x = torch.tensor(500.0), 3 * noise(1, 3, 5, 8, 8)
    x0 = denoise(x, t).x0  # x / alpha, if it were not cut
    assert float(x0.abs().max()) == 1
    share = float((x0.abs() > 1 - 1e-5).float().mean())
    assert share > 0.05  # the 95 % quantile lies beyond 1.5, where it may not be
    bare = Stage(
        settings=thresholded.settings,
        unet=thresholded.unet,
        scheduler={**thresholded.scheduler, "thresholding": False},
    )
    denoise = bare.denoiser(
        lambda network, x, t, text, level: torch.zeros(len(x), 6, *x.shape[2:]),
        Conditioning(text=torch.zeros(2, 5, 16)),
        torch.zeros(1, 4, 5, 8, 8),
    )
    assert float(denoise(x, t).x0.abs().max()) > 3


# In a run


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_run_ends_with_the_cascade(saved: Path, tmp_path: Path) -> None:
    backbone = show1.load(str(saved), CPU)
    frames = torch.randint(0, 255, (2, 16, 16, 3), generator=torch.Generator().manual_seed(0))
    clip = Video(frames.to(torch.uint8).numpy(), 2.0)
    path = clip.save(tmp_path / "clip.mp4")
    config = RunConfig(
        clip=path,
        prompt="a cat",
        method="unguided",
        out=tmp_path / "out",
        preview_every=1,
        config=unguided.Config(),
        draw=Draw(steps=2),
        source=Source(frames=2, height=16, width=16),
    )
    done = run.transfer(config, backbone, MotionCache(tmp_path / "store", 10**9))
    events = list(done)
    made = video.read(done.result.folder / "video.mp4")
    assert made.frames.shape == (5, 64, 64, 3)
    assert made.fps == 8
    pair = video.read(done.result.folder / "side_by_side.mp4")
    assert (len(pair), pair.height) == (5, 64)
    calls = done.result.manifest["network_calls"]
    assert calls == {"learn": 0, "transfer": 4, "finish": 2 * (2 + 2 + 2)}
    assert len(list((done.result.folder / "previews").iterdir())) == 2
    assert any(isinstance(event, Preview) for event in events)
    # The same from Python.
    motion = api.learn(
        backbone,
        clip,
        method="unguided",
        source=config.source,
        steps=2,
        store=MotionCache.default(),
    )
    stages: list[str] = []
    result = api.transfer(
        backbone, motion, "a cat", on_event=lambda e: stages.append(getattr(e, "stage", ""))
    )
    assert result.frames.shape == (5, 64, 64, 3)
    assert result.fps == 8
    assert "enlarge" in stages


def test_a_source_is_slowed_to_the_frames_of_a_faster_result() -> None:
    frames = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 2, 2, 3).numpy()
    clip = Video(frames, 2.0)
    assert repeat_frames(clip, 1) is clip
    slow = repeat_frames(clip, 4)
    assert slow.frames[:, 0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert slow.fps == 8
