"""Training steps on a window around the subject: where it is, what it shows, and its positions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from recast.errors import BadCall
from recast.worlds.menagerie.dataset import DATASET
from recast.worlds.training import close_up, networks
from recast.worlds.training import train as training
from recast.worlds.training.config import TrainConfig

PATCH = 2
DESIGN = networks.Design(heads=2, blocks=2)


def test_the_window_follows_the_subject_and_stays_inside() -> None:
    cover = torch.zeros(1, 4, 16, 16)
    cover[0, 0, 8:10, 8:10] = 1  # token (4, 4), so that the window begins at token (2, 2)
    cover[0, 1, 0, 0] = 1  # a corner
    cover[0, 2, 15, 15] = 1
    draws = {
        tuple(close_up.corners(cover, PATCH, np.random.default_rng(seed))[0].flatten().tolist())
        for seed in range(40)
    }
    assert len(draws) == 9  # off centre by -1, 0 or 1 tokens in both directions
    for draw in draws:
        in_middle, first, last, empty = np.reshape(draw, (4, 2))
        assert (abs(in_middle - 2) <= 1).all()
        assert (first <= 1).all()
        assert (last >= 3).all()
        assert (abs(empty - 2) <= 1).all()
        assert min(draw) >= 0
        assert max(draw) <= 4


def test_a_window_is_the_excerpt_of_each_frame() -> None:
    x = torch.randn(2, 3, 2, 16, 16)
    corner = torch.tensor([[[0, 0], [1, 4]], [[4, 2], [3, 3]]])
    found = close_up.cut(x, corner, PATCH)
    assert found.shape == (2, 3, 2, 8, 8)
    for clip in range(2):
        for frame in range(2):
            y, x0 = (PATCH * int(value) for value in corner[clip, frame])
            expected = x[clip, :, frame, y : y + 8, x0 : x0 + 8]
            assert torch.equal(found[clip, :, frame], expected)


def test_windows_are_read_at_their_real_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    transformer = networks.transformer(DESIGN).eval()
    inputs = torch.tensor([300.0]), torch.randn(1, 4, networks.TEXT_WIDTH)
    x = torch.randn(1, 8, 2, 8, 8)
    plain = transformer(x, *inputs, return_dict=False)[0]
    monkeypatch.setattr(close_up, "SIDE", 4)
    whole = torch.zeros(1, 2, 2, dtype=torch.long)
    with close_up.real_positions(transformer, whole, (8, 8)):
        assert torch.equal(transformer(x, *inputs, return_dict=False)[0], plain)

    monkeypatch.setattr(close_up, "SIDE", 2)
    tables = []
    transformer.blocks[0].register_forward_pre_hook(lambda _, args: tables.append(args[3]))
    transformer(x, *inputs)
    corner = torch.tensor([[[1, 2], [0, 1]]])
    with close_up.real_positions(transformer, corner, (8, 8)):
        transformer(close_up.cut(x, corner, PATCH), *inputs)
    # Tokens by number: 4 in a row, 16 in a frame.
    index = [6, 7, 10, 11, 17, 18, 21, 22]
    frames, windows = tables
    for frame, window in zip(frames, windows, strict=True):
        assert torch.equal(window, frame[:, index])
    transformer(x, *inputs)
    assert torch.equal(tables[-1][0], frames[0])  # the hook is gone


@pytest.mark.slow
def test_a_transformer_learns_on_close_ups(tmp_path, monkeypatch) -> None:
    sizes, plain = [], networks.transformer

    def watched(design):
        transformer = plain(design)
        transformer.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
        return transformer

    monkeypatch.setattr(networks, "transformer", watched)
    few = {"images": 40, "clips": 2, "autoencoder_steps": 1, "clip_steps": 1}
    few |= {"image_steps": 0, "short_steps": 0}
    config = TrainConfig(
        out=tmp_path, network="transformer", steps=1, close_ups=1.0, parts=0.2, whiten=True, **few
    )
    small = replace(DESIGN, size=DATASET.design.size, autoencoder=DATASET.design.autoencoder)
    training.train(config, DATASET, small).run()
    assert sizes == [(40, 8, 16, 8, 8)]
    log = [json.loads(line) for line in (tmp_path / "transformer16.jsonl").open()]
    assert np.isfinite(log[-1]["loss"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"close_ups": 0.5}, "`close_ups` needs `network` transformer"),
        ({"network": "transformer", "close_ups": 1.5}, "`close_ups` must be between 0 and 1"),
        ({"network": "transformer", "close_ups": 0.6, "joint": 0.5}, "their sum must be at most 1"),
    ],
)
def test_fractions_that_cannot_be_are_refused(tmp_path, settings, message) -> None:
    with pytest.raises(BadCall, match=message):
        TrainConfig(out=tmp_path, **settings)
