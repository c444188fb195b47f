"""The study of CamVid's architectures trains, chooses and keeps as it says."""

import importlib
import json
import math
import sys

import pytest
import torch
from torch import nn

from tests import fakes

TRAINING = importlib.import_module("experiments.benchmarks.camvid_training")
STUDY = importlib.import_module("experiments.benchmarks.camvid")


class Linear(nn.Module):
    """Planes that are linear in the picture's colours."""

    def __init__(self):
        super().__init__()
        self.score = nn.Conv2d(3, 11, 1)

    def planes(self, image):
        return {"segmentation": self.score(image.float() / 255)}


def coloured(count, seed):
    """Frames whose first colour is 20 times the label."""
    labels = torch.randint(0, 11, (count, 64, 96), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return TRAINING.Images(torch.stack([20 * labels, 255 - 20 * labels, labels], 1), labels)


def recipe(network, factor, rate=0.03):
    return TRAINING.Recipe(torch.optim.Adam(network.parameters(), lr=rate), factor, 4, (32, 64), math.inf, half=False)


def test_crops_and_mirroring_keep_labels_on_their_pixels():
    some = TRAINING.batches(coloured(9, 0), recipe(Linear(), float), torch.Generator().manual_seed(0))
    frames = coloured(9, 0).labels
    seen = [next(some) for _ in range(6)]
    for batch in seen:
        assert batch.labels.shape == (4, 32, 64)  # the ninth frame of an epoch fills no batch
        torch.testing.assert_close(batch.image[:, 0], 20 * batch.labels)
    rows = torch.cat([batch.labels[:, 0] for batch in seen])
    places = frames.unfold(-1, 64, 1).reshape(-1, 64)
    mirrored = [not (places == row).all(-1).any() for row in rows]
    assert 0 < sum(mirrored) < len(rows)
    assert all((places == row.flip(-1)).all(-1).any() for row, flipped in zip(rows, mirrored, strict=True) if flipped)


def test_the_weights_of_the_best_validation_are_left_not_the_last():
    network, data = Linear(), {"train": coloured(8, 0), "val": coloured(3, 1)}
    # after three fifths of the time the rate wrecks what was learned
    chosen = recipe(network, lambda share: 1.0 if share < 0.6 else 1e4)
    steps, best = TRAINING.train(network, chosen, data, minutes=0.02, seed=0)
    assert steps > 5
    assert TRAINING.score(network, data["val"], half=False)[0] == pytest.approx(best)
    TRAINING.step(network, chosen, data["train"])
    assert TRAINING.score(network, data["val"], half=False)[0] < best


def test_schedules_follow_the_share_of_the_budget():
    assert STUDY.one_cycle(0) == pytest.approx(1 / 25)
    assert STUDY.one_cycle(0.1) == 1
    assert STUDY.one_cycle(0.55) == pytest.approx(0.5)
    assert STUDY.one_cycle(1) == pytest.approx(0)
    assert STUDY.published_decay(1 / 750) == pytest.approx(0.995)


def test_the_papers_recipe_is_that_of_the_experiment_and_ours_keeps_running_statistics():
    STUDY.import_parts()
    options = STUDY.argparse.Namespace(size=[96, 128], crop=[64, 96])
    paper, how = STUDY.prepared("fc_densenet103_paper", None, 0, options)
    ours, _ = STUDY.prepared("fc_densenet103", 1e-3, 0, options)
    known = {"lr": 0.001, "alpha": 0.9, "eps": 0.001, "weight_decay": 0.0002}
    assert isinstance(how.optimizer, torch.optim.RMSprop)
    assert known.items() <= how.optimizer.defaults.items()
    assert (how.batch, how.crop, how.half) == (3, (64, 64), False)
    norms = {
        network: {m.batch_statistics for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
        for network in (paper, ours)
    }
    assert norms == {paper: {True}, ours: {False}}


def test_rows_are_kept_and_not_measured_again(tmp_path, monkeypatch, capsys):
    root = fakes.write_camvid(tmp_path, train=8, size=(120, 160))
    kept = tmp_path / "rows.jsonl"
    command = ["camvid", "--camvid", str(root), "--quick", "--only", "segnet_basic", "--keep", str(kept)]
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr(sys, "argv", [*command, "--seeds", *seeds])
        STUDY.main()
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["parameters"] == 1_416_587  # as experiments/README.md has it
    mean = 50 * (rows[0]["test_miou"] + rows[1]["test_miou"])
    deviation = 100 * abs(rows[0]["test_miou"] - rows[1]["test_miou"]) / math.sqrt(2)
    assert f"| {mean:.1f} ({deviation:.1f}) |" in capsys.readouterr().out.splitlines()[-1]
