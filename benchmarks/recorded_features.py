"""The memory of the features that `dmt --feature full` and `analyze invert-features` record.

    python benchmarks/recorded_features.py predict     # ZeroScope at its own size, without weights
    python benchmarks/recorded_features.py measure     # the mixture of Gaussians at that size

`predict` multiplies the bytes of one level, which the model computes on torch's meta device, by the
number of guided levels. `measure` learns and transfers a motion whose features take about a
gigabyte, and prints the largest memory of its process beyond that of one level without guidance.
Linux only; one CPU thread; a few minutes.
"""

import sys
import threading
import time
from pathlib import Path

import torch

from recast.backbones import gaussian
from recast.backbones.base import Settings
from recast.feature_guidance.taps import read_features, select_taps
from recast.methods.dmt import Config, Method
from recast.motions.method import Sampling
from recast.pipeline import model_loading

LEVELS = 20
SIZE = (24, 320, 576)


def predict() -> None:
    """Print the bytes of ZeroScope's features in both precisions."""
    for dtype in ("float16", "float32"):
        settings = Settings(dtype=dtype)
        with model_loading.load_on_meta("zeroscope", settings, torch.device("cuda")) as (model, _):
            x = torch.empty(model.latent_shape(*SIZE), device="meta")
            denoise, taps = model.denoiser(model.encode_text(["a"])), select_taps(model, ["motion"])
            features = read_features(model, denoise, taps, x, model.schedule.grid(1)[0])
        (one,) = (tensor.nbytes for tensor in features.values())
        print(
            f"{dtype}: {one / 1e6:.1f} MB a level, {LEVELS * one / 1e9:.2f} GB for {LEVELS} levels"
        )


def measure() -> None:
    """Print the largest memory of learning and of a transfer, with full features and with none."""
    model = gaussian.tiny()
    video = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sampling = Sampling(steps=LEVELS, guidance_scale=3.0)
    for guided in (0.0, 1.0):
        config = Config(
            feature="full",
            loss="absolute",
            guided=guided,
            inner_steps=1,
            inversion_steps=1,
            restart=False,
        )
        method = Method(config)
        with Watch() as learning:
            motion = method.learn(model, video, "a", sampling).run()
        size = sum(tensor.nbytes for tensor in motion.tensors.values())
        with Watch() as sampled:
            method.transfer(model, motion, "a cat", sampling).run()
        print(
            f"guided {guided:g}: the motion has {size / 1e9:.2f} GB; memory beyond that at the "
            f"start: learning {learning.peak / 1e9:.2f} GB, transfer {sampled.peak / 1e9:.2f} GB"
        )


class Watch:
    """Inside this context `peak` is the largest anonymous memory of the process so far, beyond that
    at the start. Pages of mapped files are not counted, because the system drops them at need."""

    def __enter__(self) -> "Watch":
        self._start, self.peak, self._running = _anonymous(), 0, True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._running = False
        self._thread.join()

    def _look(self) -> None:
        while self._running:
            self.peak = max(self.peak, _anonymous() - self._start)
            time.sleep(0.005)


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    {"predict": predict, "measure": measure}[sys.argv[1]]()
