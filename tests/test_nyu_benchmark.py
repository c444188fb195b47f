"""The NYU benchmark: equal starts, budgets that end, cells that are kept, intervals that are right."""

import argparse
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.models import resnet18

from experiments.benchmarks import nyu
from experiments.benchmarks.nyu_training import Frames, Ours, Peer, measured, shrunk, train
from tests.fakes import write_nyu

SIZE = (64, 96)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_nyu(tmp_path_factory.mktemp("nyu"), train=10, test=3, size=(96, 128))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    state = {key: value for key, value in resnet18().state_dict().items() if not key.startswith("layer4.1")}
    file = tmp_path_factory.mktemp("weights") / "part.pth"
    torch.save(state, file)
    return file


def bench(root, **changes) -> nyu.Bench:
    options = {"root": root, "size": list(SIZE), "keep": None, "cache": None, "quick": False, "weights": None}
    return nyu.Bench(argparse.Namespace(**options | changes))


@pytest.mark.parametrize("preset", [True, False])
def test_both_networks_start_from_all_that_the_file_holds(weights, preset):
    ours = Ours(str(weights), [nyu.Depth()], preset).module.network.encoder.state_dict()
    theirs = Peer(str(weights), [nyu.Depth()], preset).module.encoder.state_dict()
    for key, value in torch.load(weights, weights_only=True).items():
        if not key.startswith("fc."):
            torch.testing.assert_close(ours[key], value, rtol=0, atol=0)
            torch.testing.assert_close(theirs[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Ours, Peer])
def test_a_loss_is_that_of_the_prediction_in_metres(root, kind):
    network = kind(None, [nyu.Depth()], preset=False)
    network.module.eval()  # so that both see the same normalisation
    sample = Frames(shrunk(root, "test", SIZE, 1, None), ["depth"])[0]
    batch = {"image": sample["image"][None], "depth": sample["depth"][None]}
    known = batch["depth"] > 0
    error = (network.predict(batch["image"])["depth"] - batch["depth"])[known]
    torch.testing.assert_close(network.loss(batch), error.square().mean())


def test_the_rate_rises_and_falls_with_the_share_of_the_budget_and_training_ends_with_it(root, monkeypatch):
    rates = []

    class Noting(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Noting)
    shares = [0.0, 0.1, 0.55, 0.9999]
    data = Frames(shrunk(root, "train", SIZE, None, None), ["depth"])
    steps = train(Ours(None, [nyu.Depth()], preset=False), data, 1e-3, lambda done: [*shares, 1.0][done])
    assert steps == len(rates) == 4
    # one cycle: from a twenty-fifth, over the top at a tenth, half at the middle of the fall, to nearly nothing
    assert rates == pytest.approx([4e-5, 1e-3, 5e-4, 1e-7], rel=0.01, abs=5e-8)


def test_the_rmse_of_the_frames_averages_to_that_of_the_set(root):
    found = measured(Peer(None, [nyu.Depth()], preset=False), Frames(shrunk(root, "test", SIZE, None, None), ["depth"]))
    assert len(found["frames"]) == 3
    assert np.mean(found["frames"]) == pytest.approx(found["depth/rmse"], abs=1e-5)


def test_frames_come_from_the_cache_as_they_were_made(root, tmp_path):
    made, read = (shrunk(root, "test", SIZE, None, tmp_path) for _ in range(2))
    assert set(made) == set(read) == {"image", "segmentation", "depth", "normals", "intrinsics", "name"}
    for key in made:
        np.testing.assert_array_equal(made[key], read[key])
    assert made["image"].shape == (3, *SIZE, 3)


def test_a_finished_cell_is_not_computed_again_and_another_is(root, tmp_path, monkeypatch):
    keep = tmp_path / "cells.jsonl"
    asked = {"kind": Peer, "targets": ["depth"], "seed": 0, "rate": 1e-3, "preset": False, "budget": (1, "steps")}
    first = bench(root, keep=keep).cell(**asked)
    assert first["steps"] == 1
    monkeypatch.setattr(nyu, "train", lambda *_: pytest.fail("trained again"))
    later = bench(root, keep=keep)
    assert later.cell(**asked) == json.loads(keep.read_text()) == first
    for changes in ({"seed": 1}, {"budget": (1, "seconds")}, {"preset": True}, {"choosing": True}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            later.cell(**asked | changes)


def test_rates_are_chosen_on_training_frames_that_do_not_teach(root, monkeypatch):
    seen = {}
    monkeypatch.setattr(nyu, "train", lambda network, data, *_: seen.setdefault("learn", data) and 0)
    monkeypatch.setattr(nyu, "measured", lambda network, data: seen.setdefault("judge", data) and {})
    here = bench(root)
    here.cell(Peer, ["depth"], 0, 1e-3, False, (1, "steps"), choosing=True)
    learn, judge = ({image.tobytes() for image in seen[name].arrays["image"]} for name in ("learn", "judge"))
    assert learn | judge == {image.tobytes() for image in here.train["image"]}
    assert judge
    assert not learn & judge


def test_the_interval_over_seeds_is_students_and_that_over_frames_knows_a_constant_ratio():
    theirs = np.random.default_rng(1).uniform(0.5, 1.5, (3, 40))
    factors = np.array([0.9, 0.92, 0.97])
    mean, over_seeds, over_frames = nyu.difference(theirs * factors[:, None], theirs)
    expected = stats.ttest_1samp(100 * (factors - 1), 0).confidence_interval(0.95)
    assert mean == pytest.approx(-7)
    assert over_seeds == pytest.approx((expected.low, expected.high))
    assert over_frames == pytest.approx((-7, -7))
    assert np.isnan(nyu.difference(theirs[:1], theirs[:1])[1]).all()
