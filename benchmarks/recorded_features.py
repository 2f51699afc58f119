"""The memory of the features that `dmt --feature full` and `analyze invert-features` record.

    python benchmarks/recorded_features.py predict     # ZeroScope at its own size, without weights
    python benchmarks/recorded_features.py measure     # features of that size on this machine

`predict` multiplies the bytes of one level, which the model computes on torch's meta device, by the
number of guided levels. `measure` takes random features of that size through everything that keeps
features between the network and its use: the recording, a motion, its file, and the reading of each
level. It prints the largest anonymous memory of the process; pages of mapped files are not counted,
because the system drops them at need. Linux only; one CPU thread; 2 GB of disk; a minute.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from recast.backbones.base import Settings
from recast.feature_guidance.level_stack import LevelStack
from recast.feature_guidance.taps import read_features, select_taps
from recast.motions.motion import Motion
from recast.pipeline import model_loading

LEVELS = 20
SIZE = (24, 320, 576)
"""Frames, height and width."""
SHAPE, DTYPE = (24, 20, 36, 1280), torch.float16
"""ZeroScope's features of the role `motion` at that size, (F, H, W, C), on a GPU."""


def predict() -> None:
    """Print the bytes of ZeroScope's features in both precisions."""
    for dtype in ("float16", "float32"):
        settings = Settings(dtype=dtype)
        with model_loading.load_on_meta("zeroscope", settings, torch.device("cuda")) as (model, _):
            x = torch.empty(model.latent_shape(*SIZE), device="meta")
            denoise, taps = model.denoiser(model.encode_text(["a"])), select_taps(model, ["motion"])
            features = read_features(model, denoise, taps, x, model.schedule.grid(1)[0])
        (one,) = features.values()
        assert one.shape[1:] == SHAPE
        total = LEVELS * one.nbytes / 1e9
        print(f"{dtype}: {one.nbytes / 1e6:.1f} MB a level, {total:.2f} GB for {LEVELS} levels")


def measure() -> None:
    """Print the largest memory of each stage, beyond that at its start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "motion.safetensors"
        with Watch("record, and build a motion"):
            stack = LevelStack(LEVELS)
            for index in range(LEVELS):
                stack.put(index, torch.full(SHAPE, index, dtype=DTYPE))
            levels = stack.stacked()
            assert levels is not None
            motion = Motion(
                method="dmt",
                backbone="",
                tensors={"features": levels},
                metadata={},
                by_level=frozenset({"features"}),
            )
        with Watch("write the motion file"):
            motion.save(path)
        del motion, levels, stack
        with Watch("read it, and then each level"):
            motion = Motion.load(path)
            for index in range(LEVELS):
                assert (
                    float(motion.level("features", index, torch.device("cpu"))[0, 0, 0, 0]) == index
                )


class Watch:
    """Prints the largest anonymous memory of the process inside the context, beyond that at its
    start."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._start, self._peak, self._running = _anonymous(), 0, True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._running = False
        self._thread.join()
        print(f"{self._name}: {self._peak / 1e6:,.0f} MB")

    def _look(self) -> None:
        while self._running:
            self._peak = max(self._peak, _anonymous() - self._start)
            time.sleep(0.002)


def _anonymous() -> int:
    """The anonymous memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    {"predict": predict, "measure": measure}[sys.argv[1]]()
