"""densepred tune: verdicts on curves whose shape is known, and a whole search on tiny rooms."""

import copy
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import nn

from densepred.cli import main
from densepred.errors import ConfigurationError
from densepred.tuning.bench import changed, read_arguments, value_of
from densepred.tuning.curves import compared, read_curve, smoothed
from densepred.tuning.initial import activations, judge_activations, judge_initial_loss
from densepred.tuning.overfit import judge_overfitting
from densepred.tuning.plan import Plan
from densepred.tuning.rates import suggest_rate
from densepred.tuning.space import SearchRange, draw, refine
from densepred.tuning.trial import run_trial, skill
from tests.test_cli import ROOMS

WAY = np.linspace(0, 1, 300)
LINE = 2.4 - 0.8 * WAY
FALL = 0.4 + 2 * np.exp(-4 * WAY)
LATE = 2.4 - 1.8 / (1 + np.exp(-30 * (WAY - 0.6)))
PLATEAU = 1.9 + 0.5 * np.exp(-20 * WAY)
SWINGS = PLATEAU + 0.2 * np.sin(np.arange(300) * 2.5)


@pytest.mark.parametrize(
    ("losses", "shape"),
    [
        (FALL, "fine"),
        (LINE, "rate too low"),
        (np.full(300, 2.4), "rate too low"),
        (2.4 + WAY, "rate too high"),
        (np.append(FALL, np.nan), "rate too high"),
        (SWINGS, "rate too high"),
        (LATE, "bad initialisation"),
        (PLATEAU, "underfit"),
        ([], "too short"),
    ],
)
def test_a_curve_is_named_by_its_shape(losses, shape):
    assert read_curve(list(losses), reference=2.4).shape.value == shape


@pytest.mark.parametrize(
    ("rate", "end", "shape"),
    [(1.0, 1.5, "rate too high"), (1e-4, 1.5, "rate too low"), (0.012, 1.5, "fine"), (1.0, 0.9, "fine")],
)
def test_a_curve_that_ends_far_above_the_best_had_too_high_or_too_low_a_rate(rate, end, shape):
    alone = read_curve(FALL, reference=2.4)
    assert compared(alone, rate, end, best_rate=0.01, best_end=0.8, scale=2.4).shape.value == shape


@pytest.mark.parametrize("losses", [FALL, LINE, LATE], ids=["fall", "line", "late"])
def test_noise_of_the_batches_does_not_change_a_shape(losses):
    noise = np.random.default_rng(0).normal(scale=0.1, size=len(losses))
    assert read_curve(losses + noise, reference=2.4).shape == read_curve(losses, reference=2.4).shape


def test_a_warm_up_is_not_taken_for_a_bad_start():
    rates = WAY**3
    losses = 0.4 + 2 * np.exp(-3 * np.cumsum(rates) / rates.sum())
    assert read_curve(losses, rates).shape.value == "fine"
    assert read_curve(losses).shape.value == "bad initialisation"  # what it would be at a constant rate


@pytest.mark.parametrize(
    ("validation", "shape"),
    [([1.5, 1.0, 0.9], "fine"), ([1.5, 1.0, 1.2], "overfit"), ([2.6, 2.5, 2.45], "overfit"), ([math.nan], "fine")],
)
def test_validation_that_turns_or_stays_behind_is_overfitting(validation, shape):
    assert read_curve(FALL, validation=validation, reference=2.4).shape.value == shape


def test_smoothing_keeps_a_line_up_to_its_ends():
    line = np.arange(50.0) * 3 - 7
    np.testing.assert_allclose(smoothed(line), line, atol=1e-9)


def search_curve(steepest: float, diverged: float = math.inf):
    """A loss that falls by a logistic in the logarithm of the rate, whose slope is greatest at a known place."""
    rates = np.geomspace(1e-5, 10, 121)
    losses = 2.4 - 1.5 / (1 + (steepest / rates) ** 2)
    return rates, np.where(rates < diverged, losses, losses + 2 * np.log10(rates / diverged + 1e-9) * 5)


def test_the_suggested_rate_is_the_steepest():
    found = suggest_rate(*search_curve(3e-3))
    assert found.steepest == pytest.approx(3e-3, rel=0.15)
    assert found.suggested == pytest.approx(found.steepest, rel=0.05)
    assert (found.diverged, found.verdict) == (None, "good")


def test_but_at_most_a_tenth_of_where_the_loss_diverges():
    found = suggest_rate(*search_curve(1e-2, diverged=0.03))
    assert 0.03 < found.diverged < 0.1
    assert found.suggested == pytest.approx(found.diverged / 10, rel=0.05)


def test_a_rate_at_which_the_loss_is_not_finite_is_where_it_diverges():
    rates, losses = search_curve(1e-2)
    cut = int(np.searchsorted(rates, 0.5))
    found = suggest_rate(rates[: cut + 1], [*losses[:cut], math.nan])
    assert found.diverged == pytest.approx(rates[cut])
    assert found.suggested <= found.diverged / 10


def test_a_loss_that_falls_nowhere_gives_no_rate():
    rates, _ = search_curve(1.0)
    noise = np.random.default_rng(0).normal(scale=0.3, size=len(rates))
    for losses in (np.full(len(rates), 2.4), 2.4 + noise):
        assert suggest_rate(rates, losses).suggested is None


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        (2.4 * np.exp(-6 * WAY), "good"),
        (2.4 - WAY, "unclear"),
        (0.8 + 1.6 * np.exp(-20 * WAY), "unclear"),
        (np.full(300, 2.39), "bad"),
        (np.append(2.4 - WAY, np.inf), "bad"),
    ],
    ids=["to the end", "still falling", "stuck", "nothing", "infinite"],
)
def test_overfitting_is_judged_by_where_the_loss_ends(losses, verdict):
    assert judge_overfitting(list(losses), blank=2.4)[0] == verdict


def test_an_initial_loss_is_explained_by_the_spread_of_normal_scores():
    torch.manual_seed(0)
    for spread, verdict in ((0.0, "good"), (1.0, "explained")):
        scores = spread * torch.randn(20_000, 21)
        loss = float(nn.functional.cross_entropy(scores, torch.randint(21, (20_000,))))
        told = judge_initial_loss(loss, math.log(21), spread, 21)
        assert told[0] == verdict
        assert "ln 21 = 3.045" in told[1]
    # ten times too much with scores that don't account for it
    assert judge_initial_loss(30.0, math.log(21), 0.1, 21)[0] == "bad"
    assert judge_initial_loss(math.nan, math.log(21), 0.1, 21)[0] == "bad"
    assert judge_initial_loss(1.0, math.log(21), 1.0, 21)[0] == "explained"


def test_spread_zeros_and_dead_channels_are_those_of_the_layers_output():
    network = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(inplace=True))
    image = torch.rand(2, 1, 8, 8) + 0.1
    network[0].weight.data = torch.tensor([1.0, 2.0, -1.0, -2.0]).view(4, 1, 1, 1)
    conv, relu = activations(network, image)
    expected = np.concatenate([k * image.numpy().ravel() for k in (1, 2, -1, -2)])
    assert (conv.mean, conv.std) == pytest.approx((expected.mean(), expected.std(ddof=1)), abs=1e-5)
    assert (conv.dead, relu.zeros, relu.dead) == (None, 0.5, 0.5)
    assert judge_activations([conv, relu]) == ("bad", "1 has 50% dead channels")
    _, relu = activations(network, image - image.mean())
    assert relu.dead == 0.0  # each channel answers somewhere
    assert relu.zeros == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("scale", "words"), [(0.1, "vanish"), (10.0, "explode")])
def test_signals_that_vanish_or_explode_are_told(scale, words):
    layers = nn.Sequential(*[nn.Conv2d(16, 16, 1, bias=False) for _ in range(6)])
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=scale)
    verdict, reason = judge_activations(activations(layers, torch.randn(4, 16, 8, 8)))
    assert verdict == "bad"
    assert words in reason
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    assert judge_activations(activations(layers, torch.randn(4, 16, 8, 8)))[0] == "good"


def test_draws_are_log_uniform_and_do_not_depend_on_how_many_there_are():
    space = {"lr": SearchRange("log", (1e-4, 1.0)), "p": SearchRange("uniform", (0.0, 2.0))}
    draws = [draw(space, 0, 0, index) for index in range(2000)]
    logs = np.log10([values["lr"] for values in draws])
    assert logs.mean() == pytest.approx(-2, abs=0.1)
    assert np.histogram(logs, 4, (-4, 0))[0] == pytest.approx([500] * 4, rel=0.15)
    assert np.mean([values["p"] for values in draws]) == pytest.approx(1, abs=0.05)
    assert draw(space, 0, 0, 7) == draws[7]
    assert draw(space, 1, 0, 7) != draw(space, 0, 1, 7) != draws[7]


def test_the_next_ranges_are_a_third_as_wide_around_the_best():
    space = refine({"lr": SearchRange("log", (1e-4, 1e-1)), "c": SearchRange("choice", (1, 2))}, {"lr": 1e-2, "c": 2})
    assert space["lr"].values == pytest.approx((10**-2.5, 10**-1.5))
    assert space["c"].values == (2,)
    assert SearchRange("log", (1e-6, 1e-3)).around(0).values == pytest.approx((10**-6.5, 10**-5.5))
    assert SearchRange("log", (1e-4, 1e-1)).at_the_edge(0.09)
    assert SearchRange("log", (1e-4, 1e-1)).at_the_edge(0)
    assert not SearchRange("log", (1e-4, 1e-1)).at_the_edge(0.003)
    assert str(SearchRange.parse("choice:imagenet,null,0.5", "x")) == "choice:imagenet,null,0.5"


@pytest.mark.parametrize("text", ["log:0:1", "log:1", "uniform:2:1", "lin:1:2", "choice:"])
def test_a_range_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(ConfigurationError, match=re.escape(f"--search lr={text}") + r".*such as lr=log:1e-4:1e-1"):
        SearchRange.parse(text, "lr")


def test_skill_is_zero_for_the_constant_predictor_and_one_for_perfection():
    assert [skill("min", value, 2.0) for value in (2.0, 0.0, 3.0)] == [0.0, 1.0, -0.5]
    assert [skill("max", value, 0.25) for value in (0.25, 1.0)] == [0.0, 1.0]
    assert math.isnan(skill("min", 1.0, 0.0))


def test_options_are_found_with_and_without_init_args_and_misspelt_ones_are_refused():
    config = copy.deepcopy(ROOMS)
    for name in ("model.optimizer.lr", "model.init_args.optimizer.init_args.lr", "lr"):
        assert value_of(changed(config, {name: 0.5}), "lr") == 0.5
    assert changed(config, {"model.tasks.1.class_path": "X"})["model"]["init_args"]["tasks"][1] == {"class_path": "X"}
    assert value_of(config, "lr") == 0.1
    with pytest.raises(ConfigurationError, match=r"no option model.encoder.nam: 'nam' is not among name"):
        changed(config, {"model.encoder.nam": 1})


def test_a_plan_that_cannot_be_is_refused():
    for wrong in ({"trials": 0}, {"rounds": 0}, {"epochs": (1.5,)}, {"epochs": ()}, {"range_steps": -1}):
        with pytest.raises(ConfigurationError, match="expected"):
            Plan(**wrong)


class Breaks(pl.Callback):
    """Fails in every run whose rate is high."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.optimizers[0].defaults["lr"] > 0.5:
            raise RuntimeError("out of patience")


SMALL = ["--trials", "2", "--epochs", "1", "--rounds", "2", "--range_steps", "12", "--overfit_steps", "6"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A whole search: two trials, one of which fails, and one around the best."""
    folder = tmp_path_factory.mktemp("tune")
    config = copy.deepcopy(ROOMS)
    config["trainer"]["callbacks"] = [{"class_path": "tests.test_tune.Breaks"}]
    (folder / "rooms.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([
            "tune", "--config", "rooms.yaml", "--output", "search", *SMALL, "--search", "lr=choice:0.6,0.02",
            "--seed", "2", "--search", "model.encoder_lr_scale=log:0.1:1", "--data.train", "6",
        ]) == 0  # fmt: skip
    return folder


def results(folder: Path) -> dict:
    trials = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "trials").glob("*.json"))}
    for trial in trials.values():
        del trial["seconds"]
    return trials


def test_a_failed_trial_is_recorded_and_the_others_go_on(searched):
    trials = results(searched / "search")
    assert list(trials) == ["1-01", "1-02", "2-01"]
    failed = {name for name, trial in trials.items() if trial["error"]}
    assert failed
    assert failed == {name for name, trial in trials.items() if trial["values"]["lr"] > 0.5}
    assert all(trials[name]["error"] == "RuntimeError: out of patience" for name in failed)
    assert all(trial["score"] is None for name, trial in trials.items() if name in failed)


def test_the_first_trial_is_the_configuration_itself_and_options_reach_all(searched):
    trials = results(searched / "search")
    assert trials["1-01"]["values"] == {"lr": 0.1, "weight_decay": 0, "model.encoder_lr_scale": 1.0}
    done = [trial for trial in trials.values() if not trial["error"]]
    assert {(trial["steps"], trial["images"]) for trial in done} == {(3, 6)}  # 6 images of --data.train, 2 a batch
    for name, trial in trials.items():
        used = yaml.safe_load((searched / "search" / "trials" / name / "version_0" / "config.yaml").read_text())
        assert value_of(used, "lr") == trial["values"]["lr"]


def test_a_score_is_the_mean_skill_of_the_tasks(searched):
    checks = json.loads((searched / "search" / "checks.json").read_text())
    for trial in results(searched / "search").values():
        if trial["error"]:
            continue
        iou, rmse = trial["metrics"]["val/segmentation/miou"], trial["metrics"]["val/depth/rmse"]
        base = checks["constant"]
        expected = (iou - base["val/segmentation/miou"]) / (1 - base["val/segmentation/miou"]) / 2
        expected += (1 - rmse / base["val/depth/rmse"]) / 2
        assert trial["score"] == pytest.approx(expected)


def test_the_checks_know_the_losses_of_knowing_nothing(searched):
    labels, depth = json.loads((searched / "search" / "checks.json").read_text())["losses"]
    assert labels["blank"] == pytest.approx(math.log(11), abs=1e-4)
    assert "ln 11" in labels["reason"]
    assert labels["constant"] is None  # logits are not labels
    # planes of zero are 2.5 m everywhere, which is no better than the mean of these very images
    assert 0 < depth["constant"] <= depth["blank"]


def test_the_winners_configuration_is_ready_for_fit(searched, monkeypatch):
    monkeypatch.chdir(searched)
    trials = results(Path("search"))
    done = {name: trial for name, trial in trials.items() if not trial["error"]}
    best = max(done.values(), key=lambda trial: trial["score"])
    config = yaml.safe_load(Path("search/winner.yaml").read_text())
    for name, value in best["values"].items():
        assert value_of(config, name) == value
    assert value_of(config, "data.train") == 6
    assert config["trainer"]["max_epochs"] == 2
    read = read_arguments(["--config", "search/winner.yaml"])
    assert value_of(read, "lr") == best["values"]["lr"]
    options = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.callbacks", "null"]
    assert main(["fit", "--config", "search/winner.yaml", *options, "--trainer.default_root_dir", "again"]) == 0
    assert Path("again/version_0/checkpoints/last.ckpt").is_file()


def test_a_killed_search_goes_on_and_ends_with_the_same_numbers(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "search"
    shutil.copytree(searched / "search", folder)
    before = results(folder)
    # killed in the second round: its files are half there
    (folder / "trials" / "2-01.json").unlink()
    (folder / "winner.yaml").unlink()
    untouched = (folder / "trials" / "1-02.json").stat().st_mtime_ns
    assert main(["tune", "--resume", str(folder)]) == 0
    assert results(folder) == before
    assert (folder / "trials" / "1-02.json").stat().st_mtime_ns == untouched
    assert not (folder / "trials" / "2-01" / "version_1").exists()
    assert value_of(yaml.safe_load((folder / "winner.yaml").read_text()), "data.train") == 6


class Page(HTMLParser):
    """Open tags, addresses, text."""

    VOID = frozenset({"meta", "br", "img", "path", "circle", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.text, self.broken = [], [], "", []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for key, value in attributes if key in ("src", "href") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID and (not self.open or self.open.pop() != tag):
            self.broken.append(tag)

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_page_that_needs_nothing_from_elsewhere(searched):
    page = Page()
    page.feed((searched / "search" / "report.html").read_text())
    assert (page.open, page.broken) == ([], [])
    assert [address for address in page.addresses if not address.startswith(("#", "data:"))] == []
    for trial in results(searched / "search").values():
        assert trial["name"] in page.text
        assert trial["shape"] in page.text
    told = ["initial loss of", "Range search", "knowing nothing", "out of patience", "The ranges of the next round"]
    for words in [*told, "the whole search", "optuna"]:
        assert words in page.text
    assert "nan" not in re.findall(r"[a-z]+", page.text)


def test_the_cost_is_the_sum_of_all_steps(searched):
    page = Page()
    page.feed((searched / "search" / "report.html").read_text())
    found = {name: json.loads((searched / "search" / f"{name}.json").read_text()) for name in ("rates", "overfit")}
    steps = sum(len(each["losses"]) for each in found.values())
    steps += sum(trial["steps"] for trial in results(searched / "search").values())
    assert f"the whole search{steps}" in page.text


def test_a_search_is_not_begun_twice_in_a_folder_nor_resumed_where_there_is_none(searched, monkeypatch, capsys):
    monkeypatch.chdir(searched)
    assert main(["tune", "--config", "rooms.yaml", "--output", "search"]) == 1
    assert "Go on with it: --resume search" in capsys.readouterr().err
    assert main(["tune", "--resume", "elsewhere"]) == 1
    assert "Expected the folder of a search" in capsys.readouterr().err
    assert main(["tune", "--resume", "search", "--config", "rooms.yaml"]) == 1
    assert main(["tune", "--config", "rooms.yaml", "--search", "model.nothing=log:1:2"]) == 1
    assert "no option model.nothing" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_a_trial_and_says_so(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((searched / "search" / "config.yaml").read_text())
    config["trainer"]["callbacks"] = None
    trial = run_trial(config, {"lr": 1e30}, tmp_path / "1-01", epochs=1)
    assert "not finite" in trial.error
    assert trial.shape == "rate too high"
