"""The benchmark of pretraining freezes, draws and pairs what it says, and its intervals are Student's."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from densepred.encoders.resnet import ResNetEncoder

TRANSFER = runpy.run_path(str(Path(__file__).parents[1] / "experiments" / "benchmarks" / "transfer.py"))
STUDY = TRANSFER["STUDIES"]["voc"]
MIOU = TRANSFER["MIOU"]
FROZEN, IMAGENET, RANDOM = TRANSFER["FROZEN"], TRANSFER["IMAGENET"], TRANSFER["RANDOM"]


def samples(root: Path, size: tuple[int, int], most: int | None) -> dict:
    """Noise with labels, in place of a folder's data."""
    numbers = np.random.default_rng(0)
    made = [
        {
            "image": numbers.integers(0, 256, (72, 80, 3), dtype=np.uint8),
            "segmentation": numbers.integers(0, 7, (72, 80), dtype=np.uint8),
            "name": str(index),
        }
        for index in range(10)
    ]
    return {"train": made, "val": made[:2], "test": made[:3]}


@pytest.fixture
def cells(tmp_path):
    torch.manual_seed(7)
    torch.save(ResNetEncoder("resnet18").state_dict(), tmp_path / "resnet18.pth")
    study = STUDY._replace(read=samples, batch=4, shares=(0.5,))
    return TRANSFER["Cells"](study, tmp_path, tmp_path / "resnet18.pth", (64, 64), steps=2, most=None)


def run(cells, start):
    """The network before and after its cell."""
    module = cells.module(start, seed=0)
    before = {key: value.clone() for key, value in module.network.state_dict().items()}
    cells.module = lambda start, seed: module
    cells.scores(start, 1.0, 0)
    del cells.module
    return before, module.network.state_dict()


def moved(before, after):
    """Stages of which a weight or a statistic changed; those of the normalisation of images never do."""
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    return {key.split(".")[1] if key.startswith("encoder.") else "decoder" for key in changed}


def test_frozen_moves_layer4_and_the_decoder_alone_statistics_included(cells):
    assert moved(*run(cells, FROZEN)) == {"layer4", "decoder"}
    assert moved(*run(cells, IMAGENET)) >= {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "decoder"}


def test_networks_of_a_seed_have_the_decoder_in_common_and_the_encoder_of_their_start(cells):
    networks = {start: cells.module(start, seed=3).network.state_dict() for start in (FROZEN, IMAGENET, RANDOM)}
    assert moved(networks[FROZEN], networks[IMAGENET]) == set()
    assert moved(networks[IMAGENET], networks[RANDOM]) == {"conv1", "layer1", "layer2", "layer3", "layer4"}
    assert "decoder" in moved(networks[RANDOM], cells.module(RANDOM, seed=4).network.state_dict())


def test_what_imagenet_gave_is_fine_tuned_at_a_tenth_of_the_rate(cells):
    for start, factor in ((IMAGENET, 0.1), (RANDOM, 1.0)):
        module = cells.module(start, seed=0)
        rates = {id(p): group["lr"] for group in module.build_optimizer().param_groups for p in group["params"]}
        encoder = module.network.encoder
        given = [encoder.conv1, encoder.bn1, encoder.layer1, encoder.layer2, encoder.layer3]
        new = [encoder.layer4, module.network.decoders]
        assert {rates[id(p)] for part in given for p in part.parameters()} == {factor * STUDY.rate}
        assert {rates[id(p)] for part in new for p in part.parameters()} == {STUDY.rate}


def test_the_network_of_the_best_validation_is_the_one_tested(cells, monkeypatch):
    cells.study, cells.steps = cells.study._replace(validations=2), 4
    # the first of the two validations is the best
    scores = iter([{"segmentation/miou": 0.9}, {"segmentation/miou": 0.1}])
    tested = {}

    class Noting(TRANSFER["DensePredictor"]):
        def on_validation_epoch_end(self):
            self.log("val/segmentation/miou", next(scores)["segmentation/miou"])

        def on_test_start(self):
            tested["steps"] = int(self.network.encoder.bn1.num_batches_tracked)

    monkeypatch.setitem(TRANSFER["Cells"].module.__globals__, "DensePredictor", Noting)
    cells.scores(RANDOM, 1.0, 0)
    assert tested["steps"] == 2


def test_the_rooms_study_starts_from_weights_learnt_on_rooms_alone(cells, monkeypatch):
    cells.samples = lambda: samples(Path(), (64, 64), None) | {"rooms": ["a room"]}
    seen = []

    def trained(module, train, steps, seed, callbacks):
        seen.append((train, steps))
        with torch.no_grad():
            module.network.encoder.conv1.weight.fill_(0.25)

    monkeypatch.setattr(cells, "trained", trained)
    first, again = cells.module(TRANSFER["ROOMS"], 0), cells.module(TRANSFER["ROOMS"], 0)
    assert seen == [(["a room"], 3 * cells.steps)]
    for module in (first, again):
        assert (module.network.encoder.conv1.weight == 0.25).all()


def test_a_part_is_drawn_by_the_seed_and_larger_ones_hold_it():
    part, names = TRANSFER["part"], [{"name": str(index)} for index in range(100)]
    chosen = {share: {sample["name"] for sample in part(names, share, 1, 8)} for share in (0.1, 0.3, 1.0)}
    assert [len(chosen[share]) for share in (0.1, 0.3, 1.0)] == [10, 30, 100]
    assert chosen[0.1] < chosen[0.3] < chosen[1.0]
    assert chosen[0.1] != {sample["name"] for sample in part(names, 0.1, 2, 8)}
    assert len(part(names, 0.01, 1, 8)) == 8  # a batch at least


def test_finished_cells_are_kept_and_not_computed_again(cells, tmp_path, monkeypatch):
    keep, computed = tmp_path / "kept.jsonl", []

    def scores(start, share, seed):
        computed.append((start, share, seed))
        return {MIOU.key: 0.25}

    monkeypatch.setattr(cells, "scores", scores)
    measure = TRANSFER["measure"]
    measure("voc", cells.study, cells, [0], keep)
    assert computed == [(start, 0.5, 0) for start in STUDY.starts]
    found = measure("voc", cells.study, cells, [0, 1], keep)
    assert computed == [(start, 0.5, seed) for seed in (0, 1) for start in STUDY.starts]
    assert len(found) == 6
    cells.steps = 3  # other steps are another measurement
    assert len(measure("voc", cells.study, cells, [0], keep)) == 3
    assert len(computed) == 9


def test_the_table_shows_students_intervals_of_the_means_and_of_the_paired_differences():
    values = {IMAGENET: [0.31, 0.35, 0.30], RANDOM: [0.15, 0.21, 0.16]}
    found = [
        {"start": start, "share": 1.0, "seed": seed, "scores": {MIOU.key: value}}
        for start, row in values.items()
        for seed, value in (enumerate(row) if start == RANDOM else reversed(list(enumerate(row))))
    ]
    study = STUDY._replace(starts=(IMAGENET, RANDOM), shares=(1.0,))
    rows = TRANSFER["table"](study, MIOU._replace(digits=6), found).splitlines()[2:]
    shown = {row.split("|")[1].strip(): [float(v) for v in re.findall(r"[-+]?\d+\.\d+", row)] for row in rows}
    for start, row in values.items():
        expected = stats.ttest_1samp(np.multiply(row, 100), 0).confidence_interval(0.95)
        assert shown[start] == pytest.approx([100 * np.mean(row), *expected], abs=2e-6)
    expected = stats.ttest_rel(*(np.multiply(values[start], 100) for start in values)).confidence_interval(0.95)
    gain = 100 * (np.mean(values[IMAGENET]) - np.mean(values[RANDOM]))
    assert shown[f"{IMAGENET} - {RANDOM}"] == pytest.approx([gain, *expected], abs=2e-6)
    # a single seed has no interval, a missing cell no number
    assert TRANSFER["table"](study, MIOU, found[:1]).splitlines()[2:] == [
        f"| {IMAGENET} | 30.0 |", f"| {RANDOM} |  |", f"| {IMAGENET} - {RANDOM} |  |",
    ]  # fmt: skip
