"""The trackers of the repository tapnet, whose code and weights are not installed here.

A stand-in takes the place of a clone. It has the modules, classes, arguments and outputs of
github.com/google-deepmind/tapnet (commits 6af490d and 148b2c4), as `tapnet/torch/tapir_model.py`
(TAPIR.forward), `tapnet/tapnext/tapnext_torch.py` (TAPNext.forward) and
`tapnet/tapnext/tapnext_torch_utils.py` document them. It does not track: every point moves with the
speed that the weights hold, and is visible where the frame is bright at the query.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from recast import cli
from recast.errors import BadCall, BadModel
from recast.evaluation import Tools, clip_view, tapnet
from recast.media.video import Video

SPEED = (4.0, -2.0)  # pixels of 256 per frame, x and y
STAND_IN = {
    "tapnet/__init__.py": "",
    "tapnet/torch/__init__.py": "",
    "tapnet/tapnext/__init__.py": "",
    "tapnet/torch/tapir_model.py": """
import torch
from torch import nn

class TAPIR(nn.Module):
    def __init__(self, pyramid_level=0):
        super().__init__()
        assert pyramid_level == 1
        self.speed = nn.Parameter(torch.zeros(2))

    def forward(self, video, query_points):
        assert video.shape[0] == 1 and video.shape[2:] == (256, 256, 3)
        assert -1 <= video.min() and video.max() <= 1
        t, y, x = query_points[0].unbind(-1)
        assert (t == 0).all()
        frame = torch.arange(video.shape[1])[None, :, None]
        tracks = torch.stack([x, y], -1)[:, None] + frame * self.speed
        bright = video[0, 0, y.long(), x.long(), 0] > 0
        hidden = torch.where(bright, -9.0, 9.0)[:, None].repeat(1, video.shape[1])
        near = torch.full_like(hidden, -9.0)
        near[:, 1] = 9.0  # in the second frame the network is not sure of any position
        return {"tracks": tracks[None], "occlusion": hidden[None], "expected_dist": near[None]}
""",
    "tapnet/tapnext/tapnext_torch.py": """
import torch
from torch import nn

class TAPNext(nn.Module):
    def __init__(self, image_size):
        super().__init__()
        assert image_size == (256, 256)
        self.speed = nn.Parameter(torch.zeros(2))

    def forward(self, video, query_points=None, state=None):
        assert video.shape == (1, 1, 256, 256, 3)
        assert -1 <= video.min() and video.max() <= 1
        step, query_points, visible = state or (0, query_points, None)
        t, y, x = query_points[0].unbind(-1)
        if visible is None:
            visible = torch.where(video[0, 0, y.long(), x.long(), 0] > 0, 3.0, -3.0)
        tracks = torch.stack([y, x], -1) + step * self.speed.flip(-1)
        logits = visible[None, None, :, None]
        return tracks[None, None], None, logits, (step + 1, query_points, visible)
""",
    "tapnet/tapnext/tapnext_torch_utils.py": """
import numpy as np
import torch

def restore_model_from_jax_checkpoint(model, ckpt_path):
    model.speed.data.copy_(torch.from_numpy(np.load(ckpt_path)["speed"]))
    return model
""",
}


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """A folder with the stand-in; its modules are forgotten afterwards."""
    for name, text in STAND_IN.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield tmp_path / "clone"
    for name in [name for name in sys.modules if name.partition(".")[0] == "tapnet"]:
        del sys.modules[name]


def weights(folder: Path, name: str) -> Path:
    """A file of weights in the format in which the release has it."""
    path, speed = folder / name, torch.tensor(SPEED)
    match path.suffix, "next" in name:
        case ".npz", _:
            np.savez(path, speed=speed.numpy())
        case _, True:
            torch.save({"state_dict": {"tapnext.speed": speed}}, path)
        case _:
            torch.save({"speed": speed}, path)
    return path


def half_bright(frames: int = 4, height: int = 100, width: int = 300) -> np.ndarray:
    """Frames whose left third is bright, so that height and width cannot be mistaken."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[:, :, : width // 3] = 255
    return clip


START = np.array([[30.0, 80.0], [90.0, 20.0], [150.0, 50.0]])  # x, y; two of them are bright


@pytest.mark.parametrize(
    ("tracker", "file"),
    [
        ("bootstapir", "bootstapir_checkpoint_v2.pt"),
        ("tapnext", "bootstapnext_ckpt.npz"),
        ("tapnext", "tapnextpp_ckpt.pt"),
    ],
)
def test_coordinates_and_visibility_are_those_of_the_clip(
    clone: Path, tmp_path: Path, tracker: str, file: str
) -> None:
    tools = Tools(tracker=tracker, tracker_weights=weights(tmp_path, file), tapnet=clone)
    path = list(sys.path)
    tracks = tools.track("cpu")(half_bright(), START)
    assert sys.path == path
    step = np.array(SPEED) * (300 / 256, 100 / 256)
    expected = START + np.arange(4)[:, None, None] * step
    np.testing.assert_allclose(tracks.points, expected, atol=1e-4)
    visible = np.broadcast_to([True, True, False], (4, 3)).copy()
    if tracker == "bootstapir":
        visible[1] = False
    np.testing.assert_array_equal(tracks.visible, visible)


def test_points_that_influence_each_other_are_tracked_grid_by_grid(
    clone: Path, tmp_path: Path
) -> None:
    file = weights(tmp_path, "tapnextpp_ckpt.pt")
    tools = Tools(tracker="tapnext", tracker_weights=file, tapnet=clone, grid=4, legacy_grid=3)
    assert tools.tracks_points_jointly
    view = clip_view.clip_view(Video(half_bright(), 8), tools, None, "cpu", embeds=False)
    assert view.tracks is not None
    assert view.released_tracks is not None
    assert (view.tracks.points.shape, view.released_tracks.points.shape) == ((4, 48, 2), (4, 9, 2))


def test_missing_code_is_an_error_that_names_the_repository(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = weights(tmp_path, "bootstapir_checkpoint_v2.pt")
    monkeypatch.setitem(sys.modules, "tapnet", None)  # as if the package were not installed
    with pytest.raises(BadModel, match=r"pip install 'tapnet\[torch\] @ git\+https.* clone of git"):
        tapnet.bootstapir(half_bright(), START, weights=file)
    monkeypatch.delitem(sys.modules, "tapnet")
    (clone / "tapnet/torch/tapir_model.py").write_text("raise RuntimeError('no tree')")
    with pytest.raises(BadModel, match=r"code of `tracker=bootstapir` cannot be loaded \(no tree"):
        tapnet.bootstapir(half_bright(), START, weights=file, folder=clone)


@pytest.mark.parametrize("tracker", ["bootstapir", "tapnext"])
def test_weights_of_another_network_are_refused(clone: Path, tmp_path: Path, tracker: str) -> None:
    file = tmp_path / "other.pt"
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, file)
    tools = Tools(tracker=tracker, tracker_weights=file, tapnet=clone)
    with pytest.raises(BadModel, match=rf"not hold the weights of {tracker} .*storage.googleapis"):
        tools.track("cpu")(half_bright(), START)
    file.write_text("<html>not found</html>")
    with pytest.raises(BadModel, match=rf"not hold the weights of {tracker}"):
        tools.track("cpu")(half_bright(), START)


def test_missing_weights_are_found_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadCall, match=r"`tracker=tapnext` needs its weights.*bootstapnext_ckpt"):
        Tools(tracker="tapnext")
    with pytest.raises(BadCall, match=r"finds no file .*gone\.pt.*bootstapir_checkpoint_v2\.pt"):
        Tools(tracker="bootstapir", tracker_weights=tmp_path / "gone.pt")
    with pytest.raises(BadCall, match=r"`tracker_weights` is for `tracker` bootstapir and tapnext"):
        Tools(tracker_weights=tmp_path)
    for grid in (1, 65):
        with pytest.raises(BadCall, match=rf"`grid` must be from 2 to 64, got {grid}"):
            Tools(grid=grid)
    argv = ["evaluate", "a.mp4", "b.mp4", "--tracker", "tapnext"]
    assert cli.main(argv) == 2
    assert "--tracker tapnext needs its weights: set --tracker-weights" in capsys.readouterr().err
