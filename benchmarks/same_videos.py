"""Does a change of the code change what users get? Ten calls, and the hashes of what they make.

    python benchmarks/same_videos.py make before.json      # on the version before
    python benchmarks/same_videos.py make after.json       # on the version after
    python benchmarks/same_videos.py compare before.json after.json

The calls go through the command line and the public Python functions only, so that the script runs
unchanged on both versions. They cover the demo, methods that guide, inject and train, masks,
windows, motion files, mixing and the benchmark, on both shipped models. One CPU thread; a few
minutes. Two machines may round differently, so make both files on one machine.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PROMPT = "a red circle on a navy background"
SOURCE = "an orange star on a gray background"
SUITE = """
about = "One pair, to compare two versions of Recast."
methods = ["unguided", "quick"]
[[world]]
pairs = 1
[[variant]]
name = "quick"
method = "dmt"
steps = 4
config = { inner_steps = 2 }
"""
PYTHON = f"""
import recast
backbone = recast.load("shapes")
clip = recast.read("clip.mp4")
motion = recast.learn(backbone, clip, method="motionclone", steps=6)
recast.transfer(backbone, motion, {PROMPT!r}, seed=3).save("python/video.mp4")
"""


def transfer(out: str, *words: str, clip: str = "clip.mp4") -> list[str]:
    """`recast transfer` into a folder."""
    return ["transfer", clip, PROMPT, "--out", out, *words]


TRAIN = ["--method", "motion_inversion", "--iterations", "6", "--steps", "6"]
CALLS: Mapping[str, Sequence[Sequence[str]]] = {
    "demo": [["demo", "--out", "demo"]],
    "dmt-reference": [
        transfer(
            "dmt-reference",
            *("--preset", "reference", "--steps", "6", "--inversion-steps", "12"),
            *("--inner-steps", "2", "--samples", "2"),
        )
    ],
    "dmt-paper-dit": [
        transfer(
            "dmt-paper-dit",
            *("--backbone", "shapes-dit", "--preset", "paper", "--steps", "6"),
            *("--inversion-steps", "12", "--inner-steps", "2"),
        )
    ],
    "dmt-windows": [
        transfer("dmt-windows", "--frames", "24", "--window", "16", "--steps", "5", clip="long.mp4")
    ],
    "moft-dit": [
        transfer("moft-dit", "--backbone", "shapes-dit", "--method", "moft", "--steps", "6")
    ],
    "dreammotion-mask": [
        transfer(
            "dreammotion-mask",
            *("--method", "dreammotion", "--source-prompt", SOURCE, "--mask", "auto"),
            *("--iterations", "8"),
        )
    ],
    "ditflow-dit": [
        transfer(
            "ditflow-dit",
            *("--backbone", "shapes-dit", "--method", "ditflow", "--steps", "5"),
        )
    ],
    "query-injection": [
        transfer("query-injection", "--method", "query_injection", "--steps", "6", "--also", "gif")
    ],
    "mixed-motion": [
        ["learn", "clip.mp4", "--out", "one.safetensors", *TRAIN],
        ["learn", "long.mp4", "--out", "two.safetensors", *TRAIN],
        [
            *("mix", "one.safetensors", "two.safetensors"),
            *("--weights", "0.5", "0.5", "--out", "sum.safetensors"),
        ],
        transfer("mixed-motion", clip="sum.safetensors"),
    ],
    "bench": [["bench", "suite.toml", "--out", "bench"]],
}


def make(out: Path) -> None:
    """Run all calls in a scratch folder, and write the hash of every clip they made."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ |= {"OMP_NUM_THREADS": "1", "RECAST_STORE": str(scratch / "store")}
        (scratch / "suite.toml").write_text(SUITE)
        _recast(scratch, "shapes", "render", "--seed", "9000014", "--out", "clip.mp4")
        _lengthened(scratch / "clip.mp4", scratch / "long.mp4")
        for call, commands in CALLS.items():
            for words in commands:
                _recast(scratch, *words)
            sys.stderr.write(f"{call}\n")
        subprocess.run([sys.executable, "-c", PYTHON], cwd=scratch, check=True)
        for path in sorted(scratch.rglob("*.mp4")):
            key = str(path.relative_to(scratch))
            found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found)} clips in {out}")


def compare(before: Path, after: Path) -> int:
    """Print every clip that differs; the exit code says whether any does."""
    one, two = (json.loads(path.read_text()) for path in (before, after))
    names = sorted({*one, *two})
    different = [name for name in names if one.get(name) != two.get(name)]
    print("\n".join(f"different: {name}" for name in different))
    print(f"{len(names) - len(different)} of {len(names)} clips are the same, byte for byte")
    return int(bool(different))


def _recast(folder: Path, *words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "recast", *words],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _lengthened(clip: Path, out: Path) -> None:
    """A clip of 32 frames: there and back."""
    import numpy as np

    import recast

    video = recast.read(clip)
    frames = np.concatenate([video.frames, video.frames[::-1]])
    recast.Video(frames, video.fps).save(out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        sys.exit(compare(Path(sys.argv[2]), Path(sys.argv[3])))
    make(Path(sys.argv[2]))
