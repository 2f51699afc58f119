"""A probe finds what features contain, and nothing in noise."""

import json

import numpy as np
import pytest

from recast import cli
from recast.analysis import probe
from recast.analysis.probe import ProbeConfig
from recast.backbones import gaussian
from recast.errors import BadCall, UnknownName
from recast.events import Step


def test_a_linear_dependence_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((2, 12))
    targets = [rng.standard_normal((16, 2)) for _ in range(60)]
    carried = [place @ mix + 0.01 * rng.standard_normal((16, 12)) for place in targets]
    assert probe.held_out_r2(carried, targets) > 0.99
    assert abs(probe.held_out_r2([rng.standard_normal((16, 12)) for _ in targets], targets)) < 0.1


def test_every_role_and_level_has_a_row():
    job = probe.probe(gaussian.tiny(), ProbeConfig(clips=20, levels=(0.0, 1.0)))
    events = list(job)
    assert [event.index for event in events if isinstance(event, Step)] == list(range(1, 21))
    rows = {row.role: row.r2 for row in job.result}
    assert rows.keys() == {"motion", "keys"}
    # The mean colour of a frame hardly tells a place, and pure noise tells nothing.
    assert all(len(r2) == 2 and r2[1] < 0.2 for r2 in rows.values())


@pytest.mark.slow
def test_the_shipped_models_features_predict_the_position(capsys):
    roles = ["decoder1.temporal_conv", "decoder3.temporal_conv"]
    argv = ["analyze", "probe", "--clips", "20", "--levels", "0.5", "--roles", *roles, "--json"]
    assert cli.main(argv) == 0
    rows = {row["role"]: row["r2"][0] for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == roles
    assert rows[roles[0]] > 0.6 > 0.4 > rows[roles[1]]


def test_impossible_settings_are_refused():
    with pytest.raises(BadCall, match="at least 20"):
        ProbeConfig(clips=3)
    with pytest.raises(BadCall, match="between 0 and 1"):
        ProbeConfig(levels=(200.0,))
    with pytest.raises(UnknownName, match="motion"):
        list(probe.probe(gaussian.tiny(), ProbeConfig(roles=("motoin",))))


def test_packed_frames_share_their_features():
    """There is one row for each frame of the clip, however latents and layers pack frames."""
    features = np.arange(6.0).reshape(3, 2)
    packed = [slice(0, 1), slice(1, 5), slice(5, 9)]
    rows = probe.by_frame(features, packed)[:, 0].tolist()
    assert rows == [0, 2, 2, 2, 2, 4, 4, 4, 4]
    # The clip begins twice in the latents, and the layer takes them in pairs.
    twice = [slice(0, 1), *packed]
    assert probe.by_frame(features[:2], twice)[:, 0].tolist() == [0] + [2] * 8
    same = [slice(i, i + 1) for i in range(3)]
    np.testing.assert_array_equal(probe.by_frame(features, same), features)
