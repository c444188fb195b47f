"""Pages about runs: what they show is what the run left, nothing is fetched, and missing pieces are said."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from densepred.cli import main
from densepred.errors import ConfigurationError
from densepred.reports import page as html
from densepred.reports.axes import Axis, axis_for, exact_axis
from densepred.reports.comparison_page import comparison_page, with_deviation
from densepred.reports.diagnostics import class_table, confusion_chart, ious
from densepred.reports.groups import differences, flat, groups_of
from densepred.reports.layout import layout
from densepred.reports.multitask import changes_of, delta_m
from densepred.reports.run import Run, find_run
from densepred.reports.run_page import run_page
from densepred.reports.svg import Mark, Series, bars, chart, thinned
from densepred.reports.workspace import save_workspace, workspace

VOID = {"meta", "br", "img", "hr", "link", "input"}


class Document(HTMLParser):
    """Text, tables and addresses of a page; an element that is not closed in its place is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        (found,) = [row for row in self.rows if row and row[0] == first]
        return found


def opens_offline(text: str) -> Document:
    document = Document(text)
    assert all(address.startswith(("#", "data:image/")) for address in document.addresses)
    assert re.findall(r"https?://|@import|url\(", text) == []
    assert "script" not in document.elements
    return document


def config(tasks: list[str], seed: int = 0, rate: float = 0.1, encoder: str = "resnet18") -> dict:
    return {
        "seed_everything": seed,
        "trainer": {"default_root_dir": f"runs/{seed}", "max_epochs": 2},
        "model": {
            "class_path": "DensePredictor",
            "init_args": {
                "encoder": {"class_path": "ResNetEncoder", "init_args": {"name": encoder}},
                "tasks": [{"class_path": task} for task in tasks],
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": rate}},
            },
        },
        "data": {"class_path": "RoomsDataModule", "init_args": {"size": [64, 64]}},
    }


def written(folder: Path, settings: dict | None, **columns: list[float]) -> Run:
    """A run's folder with a configuration and curves, a column each, at the steps 9, 19, ..."""
    folder.mkdir(parents=True)
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    named = {key.replace("__", "/"): values for key, values in columns.items()}
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", *named])
        for index, values in enumerate(zip(*named.values(), strict=True)):
            writer.writerow([index, 10 * index + 9, *values])
    return Run(folder)


def test_text_from_a_run_cannot_become_markup():
    nasty = "<b onclick=x>&\"'"
    text = html.page(
        nasty,
        {nasty: html.table([nasty], [[nasty]], nasty) + html.note(nasty) + html.code(nasty) + html.folded(nasty, "x")}
        | {"drawn": chart([Series(nasty, [1, 2], [3, 4])], nasty, nasty, nasty, marks=[Mark(1, nasty)])},
        nasty,
    )
    assert "<b " not in text
    assert nasty in "".join(opens_offline(text).text)


def test_places_on_an_axis_follow_its_scale():
    assert Axis(0, 10, 100, 200).place(2.5) == 125
    assert Axis(1, 10_000, 400, 0, log=True).place(100) == pytest.approx(200)
    assert exact_axis([3, 7, math.nan], 0, 1).low == 3
    axis = axis_for([2.0, math.inf, -1.0, 8.0], 0, 100, log=True)
    assert 0 < axis.low < 2 < 8 < axis.high < math.inf


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-5, 2e-5), (123, 98_765), (0.999, 1.001)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_evenly_spaced_and_within_the_range(low, high, log):
    if log and low <= 0:
        low = high / 1e6
    ticks = Axis(low, high, 0, 1, log).ticks()
    assert 2 <= len(ticks) <= 14
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    if not log:
        np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


def test_a_line_goes_through_its_points_and_breaks_where_a_value_is_not_finite():
    drawn = chart([Series("loss", [0, 1, 2, 3, 4], [0, 1, math.nan, 1, 0])], "loss")
    paths = re.findall(r'<path d="M([^"]*)" fill="none"', drawn)
    assert len(paths) == 2
    (x0, y0), (x1, y1) = [tuple(map(float, point.split())) for point in paths[0].split("L")]
    assert x0 < x1
    assert y0 > y1  # pixels count downward
    assert "1 not drawn: not finite" in drawn
    assert "No values." in chart([Series("loss", [0], [math.nan])], "loss")


def test_numbers_beside_an_axis_stay_within_the_picture():
    drawn = chart([Series("loss", [0, 0.0025], [1, 2])], "loss")
    width = float(re.search(r'viewBox="0 0 (\d+)', drawn)[1])
    placed = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle"[^>]*>([\d.e+-]+)<', drawn)
    assert len(placed) >= 3
    # digits are about six tenths as wide as high: 11 px
    assert all(float(x) + len(text) * 6.4 / 2 <= width for x, text in placed)


def test_bars_are_as_high_as_their_numbers_relate():
    heights = [
        float(h) for h in re.findall(r'height="([\d.]+)" fill="#3b7dd8"', bars([1, 2, math.nan, 4], range(5), "x"))
    ]
    assert heights == pytest.approx([heights[0], 2 * heights[0], 4 * heights[0]], rel=1e-3)


def test_a_thinned_line_keeps_its_spike():
    points = [(x, 0.0) for x in range(10_000)]
    points[4321] = (4321, 99.0)
    kept = thinned(points, 400)
    assert len(kept) <= 400
    assert (4321, 99.0) in kept


def test_iou_recall_and_precision_by_class_are_those_of_scikit_learn():
    from sklearn.metrics import confusion_matrix, jaccard_score, precision_score, recall_score

    generator = np.random.default_rng(0)
    true, predicted = generator.integers(0, 4, 500), generator.integers(0, 4, 500)
    names = ["a", "b", "c", "d"]
    found = {
        "mode": "multiclass",
        "classes": names,
        "confusion": [confusion_matrix(true, predicted).tolist()],
    }
    expected = jaccard_score(true, predicted, average=None)
    assert list(ious(found).values()) == pytest.approx(list(expected))
    document = opens_offline(html.page("x", {"x": class_table(found) + confusion_chart(found)}))
    for index, name in enumerate(names):
        _, iou, recall, precision, share = document.row(name)
        assert float(iou) == pytest.approx(expected[index], rel=1e-3)
        assert float(recall) == pytest.approx(recall_score(true, predicted, average=None)[index], rel=1e-3)
        assert float(precision) == pytest.approx(precision_score(true, predicted, average=None)[index], rel=1e-3)
        assert float(share) == pytest.approx((true == index).mean(), rel=1e-3)
    assert [row[0] for row in document.rows[1:]] == [names[i] for i in np.argsort(expected)]


def test_the_page_shows_the_numbers_of_metrics_csv(tmp_path):
    run = written(
        tmp_path / "rooms" / "version_0", config(["Depth"]), train__loss=[3, 2, 1], val__depth__rmse=[2, 1.5, 1.25]
    )
    document = opens_offline(run_page(run))
    assert document.row("rmse") == ["rmse", "1.25"]
    assert "val: 1.5 at 19" in "".join(document.text)


def test_results_stand_in_the_networks_order_with_the_better_of_each_row_in_bold(tmp_path):
    # metrics.csv has its columns by the alphabet
    run = written(
        tmp_path / "a" / "version_0", config(["Segmentation", "Depth"]), val__depth__delta1=[0.5], val__depth__loss=[9],
        val__depth__rmse=[2], val__segmentation__miou=[0.4],
    )  # fmt: skip
    (run.folder / "diagnostics").mkdir()
    tasks = {"segmentation": {"metrics": {"miou": 0.4}}, "depth": {"metrics": {"loss": 9, "rmse": 2, "delta1": 0.5}}}
    (run.folder / "diagnostics" / "val.json").write_text(json.dumps({"tasks": tasks}))
    constant = {"val/depth/rmse": 1.0, "val/depth/delta1": 0.25, "val/segmentation/miou": 0.1}
    (run.folder / "diagnostics" / "val_results.json").write_text(json.dumps({"constant": constant}))
    run = Run(run.folder)
    assert run.metrics("val") == {"segmentation": ["miou"], "depth": ["rmse", "delta1", "loss"]}
    text = run_page(run)
    rows = [row[0] for row in opens_offline(text).rows]
    assert [name for name in rows if name in ("miou", "rmse", "delta1", "loss")] == ["miou", "rmse", "delta1", "loss"]
    # more is better for miou and delta1, less for rmse, and nothing is said of the loss
    assert re.findall(r'<td class="[^"]*best">([^<]*)<', text) == ["0.4", "1", "0.5"]


def test_rates_of_groups_that_are_one_line_are_drawn_once_and_named_together(tmp_path):
    rates = {"lr-SGD/decoder": [0.1, 0.2], "lr-SGD/encoder": [0.1, 0.2], "lr-SGD/bias": [0.3, 0.2]}
    run = written(tmp_path / "a" / "version_0", config(["Depth"]), **rates)
    text = run_page(run)
    assert re.findall(r"</i>([^<]*)</li>", text) == ["bias", "decoder, encoder"]


def test_a_validation_by_itself_after_the_training_is_no_part_of_its_curves(tmp_path):
    run = written(tmp_path / "a" / "version_0", config(["Depth"]), val__depth__rmse=[2, 1])
    with (run.folder / "metrics.csv").open("a") as file:
        file.write("0,0,7.5\n")
    assert Run(run.folder).curves["val/depth/rmse"].values == [2, 1]
    assert Run(run.folder).latest["val/depth/rmse"] == 7.5
    assert Run(run.folder).alone == {"val/depth/rmse": 7.5}
    document = opens_offline(run_page(Run(run.folder)))
    assert ["", "last in training", "by itself"] in document.rows
    assert document.row("rmse") == ["rmse", "1", "7.5"]


def test_a_run_that_was_killed_at_once_still_has_a_page(tmp_path):
    folder = tmp_path / "rooms" / "version_0"
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text('[{"command": ["densepred", "fit"')
    (folder / "config.yaml").write_text("model: [")
    text = "".join(opens_offline(run_page(Run(folder))).text)
    for told in ("No evaluation is in metrics.csv", "nothing was logged", "config.yaml is missing or cannot be read"):
        assert told in text
    (folder / "metrics.csv").write_text("epoch,step,train/loss\n0,9,0.5\n0,19,nan\n0,29,0.")
    assert "train" in "".join(opens_offline(run_page(Run(folder))).text)


def test_seeds_are_averaged_with_the_deviation_of_a_sample(tmp_path):
    runs = [
        written(tmp_path / "a" / f"version_{seed}", config(["Depth"], seed), val__depth__rmse=[2 + seed, 1 + seed])
        for seed in (0, 1, 5)
    ]
    (group,) = groups_of(runs)
    assert group.mean("val/depth/rmse") == pytest.approx(3)  # of 1, 2, 6
    assert group.deviation("val/depth/rmse") == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / 2
    curve, spread = group.curve("val/depth/rmse")
    assert (curve.steps, curve.values) == ([9, 19], [4, 3])
    assert spread == pytest.approx([math.sqrt(7)] * 2)
    document = opens_offline(comparison_page(runs))
    assert document.row("depth/rmse") == ["depth/rmse", "3.0 ± 2.6"]


def test_runs_that_differ_by_more_than_the_seed_stand_apart_with_their_difference_named(tmp_path):
    runs = [
        written(tmp_path / name / "version_0", config(["Depth"], seed, rate), val__depth__rmse=[2, value])
        for name, seed, rate, value in (("slow", 0, 0.01, 1.5), ("fast", 1, 0.1, 1.0))
    ]
    groups = groups_of(runs)
    assert [group.name for group in groups] == ["slow", "fast"]
    assert differences(groups) == [["model.optimizer.lr", "0.01", "0.1"]]
    document = opens_offline(comparison_page(runs))
    assert document.row("depth/rmse") == ["depth/rmse", "1.5", "1"]
    assert document.row("model.optimizer.lr") == ["model.optimizer.lr", "0.01", "0.1"]


def test_options_of_a_part_that_only_some_runs_have_are_folded_away_behind_its_name(tmp_path):
    runs = [
        written(tmp_path / name / "version_0", config([task]), val__loss=[1])
        for name, task in (("a", "Depth"), ("b", "Normals"))
    ]
    content = yaml.safe_load((runs[0].folder / "config.yaml").read_text())
    content["model"]["init_args"]["tasks"][0]["init_args"] = {"max_depth": 80}
    (runs[0].folder / "config.yaml").write_text(yaml.safe_dump(content))
    text = comparison_page([Run(run.folder) for run in runs])
    shown, _, hidden = text.partition("Options that not every run has")
    assert "model.tasks.0.class_path" in shown
    assert "max_depth" in hidden
    assert "max_depth" not in shown


def test_a_mean_and_its_deviation_end_at_the_same_digit():
    assert with_deviation(0.73912, 0.0214) == "0.739 ± 0.021"
    assert with_deviation(3.0, 0.0) == "3 ± 0"


def test_runs_without_a_configuration_are_never_taken_for_seeds_of_one(tmp_path):
    runs = [written(tmp_path / "a" / f"version_{i}", None, val__depth__rmse=[1, i]) for i in range(2)]
    assert [len(group.runs) for group in groups_of(runs)] == [1, 1]


def test_a_run_that_lacks_a_number_leaves_its_group_without_a_mean(tmp_path):
    runs = [
        written(tmp_path / "a" / "version_0", config(["Depth"], 0), val__depth__rmse=[1]),
        written(tmp_path / "a" / "version_1", config(["Depth"], 1), train__loss=[1]),
    ]
    (group,) = groups_of(runs)
    assert group.mean("val/depth/rmse") is None
    assert "no mean of what a/version_1 did not log" in "".join(Document(comparison_page(runs)).text)
    assert group.curve("val/depth/rmse") is None


def test_delta_m_is_the_mean_of_signed_relative_changes(tmp_path):
    together = written(
        tmp_path / "all" / "version_0",
        config(["Segmentation", "Depth"]),
        val__segmentation__miou=[0.55],
        val__depth__rmse=[0.8],
    )
    labels = written(tmp_path / "labels" / "version_0", config(["Segmentation"]), val__segmentation__miou=[0.5])
    depth = written(tmp_path / "depth" / "version_0", config(["Depth"]), val__depth__rmse=[1.0])
    groups = groups_of([together, labels, depth])
    changes, notes = changes_of(groups[0], groups)
    # labels gain a tenth; depth's error falls by a fifth, which is a gain too
    assert {change.task: change.change for change in changes} == pytest.approx({"segmentation": 0.1, "depth": 0.2})
    assert delta_m(changes) == pytest.approx(0.15)
    assert notes == []
    assert opens_offline(comparison_page([together, labels, depth])).row("delta-m")[-1] == "+15.00 %"
    assert changes_of(groups[1], groups) == ([], [])


def test_delta_m_says_with_which_of_several_single_task_runs_it_compares(tmp_path):
    runs = [
        written(tmp_path / "all" / "version_0", config(["A", "B"]), val__a__miou=[0.5], val__b__rmse=[1]),
        written(tmp_path / "slow" / "version_0", config(["A"], rate=0.01), val__a__miou=[0.4]),
        written(tmp_path / "fast" / "version_0", config(["A"], rate=0.1), val__a__miou=[0.8]),
        written(tmp_path / "b" / "version_0", config(["B"]), val__b__rmse=[2]),
    ]
    groups = groups_of(runs)
    changes, notes = changes_of(groups[0], groups)
    # (0.5 - 0.8) / 0.8, and an error that has halved
    assert [change.change for change in changes] == pytest.approx([-0.375, 0.5])
    assert notes == ["slow, fast all learn a alone; compared with fast."]


def test_delta_m_against_another_encoder_is_told(tmp_path):
    runs = [
        written(tmp_path / "all" / "version_0", config(["A", "B"]), val__a__miou=[0.5], val__b__rmse=[1]),
        written(tmp_path / "a" / "version_0", config(["A"], encoder="resnet50"), val__a__miou=[0.5]),
        written(tmp_path / "b" / "version_0", config(["B"]), val__b__rmse=[1]),
    ]
    groups = groups_of(runs)
    _, notes = changes_of(groups[0], groups)
    assert len(notes) == 1
    assert "a has another encoder than all" in notes[0]
    assert "give a single-task run for each" in "".join(Document(comparison_page(runs[:2])).text)


def test_a_configuration_is_flattened_without_losing_an_option():
    given = config(["Depth", "Normals"])
    options = flat(given)
    assert options["model.encoder.name"] == "resnet18"
    assert options["model.tasks.1.class_path"] == "Normals"
    assert options["data.size.0"] == 64
    assert flat({"a": {"init_args": {}}, "b": [], "c": None}) == {"a": {}, "b": [], "c": None}


def test_every_logged_number_has_exactly_one_place_in_the_layout():
    keys = [
        "train/loss", "val/loss", "train/depth/loss", "val/depth/loss", "val/depth/rmse", "val/segmentation/iou/wall",
        "val/segmentation/iou/floor", "lr-SGD/encoder", "lr-SGD/decoder", "train/gradient_norm", "speed/data_wait",
        "memory/process", "balance/depth",
    ]  # fmt: skip
    sections = layout(keys)
    placed = [key for plots in sections.values() for plot in plots for key in plot.keys]
    assert sorted(placed) == sorted(keys)
    assert sections["Loss"][0].keys == ("train/loss", "val/loss")
    assert sections["Other"][0].keys == ("balance/depth",)


LOGGED = ["train/loss", "val/loss", "val/depth/abs_rel", "val/labels/miou", "val/normals/mean_angle", "val/flow/epe"]
LOGGED += ["speed/data_wait", "lr-SGD/encoder", "train/gradient_norm"]


def test_the_workspace_of_wandb_shows_every_curve_once_and_what_each_kind_of_task_sends():
    spec = workspace(LOGGED, ["depth", "labels", "normals", "flow"])
    assert json.loads(json.dumps(spec)) == spec
    sections = spec["section"]["panelBankConfig"]["sections"]
    panels = [panel for section in sections for panel in section["panels"]]
    lines = [panel for panel in panels if panel["viewType"] == "Run History Line Plot"]
    media = [panel for panel in panels if panel["viewType"] == "Media Browser"]
    assert sorted(key for panel in lines for key in panel["config"]["metrics"]) == sorted(
        [*LOGGED, "angles/val/normals"]
    )
    assert {key for panel in media for key in panel["config"]["mediaKeys"]} == {
        *(f"{kind}/val/{task}" for kind in ("panels", "worst") for task in ("depth", "labels", "normals", "flow")),
        *(f"diagnostics/val/{task}" for task in ("depth", "labels", "normals")),  # a task of one's own has no charts
    }
    assert [panel["viewType"] for panel in panels].count("Weave") == 1
    names = [section["name"] for section in sections]
    assert names[0] == "Loss"
    assert names.index("Panels") < names.index("Diagnostics") < names.index("Optimiser") < names.index("Machine")
    for section in sections:
        places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in section["panels"]]
        assert len(set(places)) == len(places)


def test_the_workspace_is_accepted_by_the_models_of_the_package_and_reads_back_as_its_panels():
    internal = pytest.importorskip("wandb_workspaces.workspaces.internal")
    from wandb_workspaces.reports.v2 import WeavePanelSummaryTable
    from wandb_workspaces.workspaces import Workspace

    spec = workspace(LOGGED, ["labels", "normals"])
    checked = internal.WorkspaceViewspec.model_validate(spec)
    kinds = {type(p).__name__ for s in checked.section.panel_bank_config.sections for p in s.panels}
    assert kinds == {"LinePlot", "MediaBrowser", "WeavePanel"}  # none is an UnknownPanel
    view = internal.View(entity="e", project="p", display_name="d", name="nw-a-v", id="", spec=checked)
    read = Workspace._from_model(view)
    given = spec["section"]["panelBankConfig"]["sections"]
    assert [section.name for section in read.sections] == [section["name"] for section in given]
    assert read.settings.x_axis == "trainer/global_step"
    (table,) = [panel for section in given for panel in section["panels"] if panel["viewType"] == "Weave"]
    assert table["config"] == WeavePanelSummaryTable(table_name="iou/val/labels")._to_model().config
    lines = [p for s in read.sections for p in s.panels if type(p).__name__ == "LinePlot"]
    assert "angles/val/normals" in {str(getattr(y, "name", y)) for p in lines for y in p.y}


def test_a_saved_workspace_is_sent_as_a_view_of_its_project_and_its_address_told(monkeypatch):
    internal = pytest.importorskip("wandb_workspaces.workspaces.internal")
    sent = {}
    monkeypatch.setattr(internal.wandb, "Api", lambda: None)
    monkeypatch.setattr(internal, "execute_graphql", lambda api, query, variables: sent.update(variables))
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    spec = workspace(LOGGED, ["labels"])
    address = save_workspace("someone/rooms", spec)
    assert (sent["entityName"], sent["projectName"], sent["type"]) == ("someone", "rooms", "project-view")
    panels = json.loads(sent["spec"])["section"]["panelBankConfig"]["sections"][0]["panels"]
    assert panels[0]["config"]["metrics"] == ["train/loss", "val/loss"]
    assert address == f"https://wandb.ai/someone/rooms?nw={sent['name'].removeprefix('nw-').removesuffix('-v')}"

    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(internal, "execute_graphql", refuse)
    with pytest.raises(ConfigurationError, match=r"could not be saved in someone/rooms: no network\. Log in"):
        save_workspace("someone/rooms", spec)


def test_a_project_without_its_entity_is_refused():
    with pytest.raises(ConfigurationError, match="ENTITY/PROJECT; got 'rooms'"):
        save_workspace("rooms", {})


def test_an_experiment_means_its_last_run_and_anything_else_is_refused(tmp_path):
    for version in (2, 10):
        written(tmp_path / "rooms" / f"version_{version}", config(["Depth"]), train__loss=[1])
    assert find_run(tmp_path / "rooms").folder.name == "version_10"
    assert find_run(tmp_path / "rooms" / "version_2" / "metrics.csv").folder.name == "version_2"
    with pytest.raises(ConfigurationError, match=r"is no run\. Expected a folder with metrics\.csv"):
        find_run(tmp_path)


def test_the_command_writes_one_page_beside_one_run_and_one_above_several(tmp_path, capsys):
    for name in ("a", "b"):
        run = written(tmp_path / name / "version_0", config(["Depth"], rate=ord(name)), train__loss=[1, 2])
        (run.folder / "panels").mkdir()
        Image.new("RGB", (4, 4), "red").save(run.folder / "panels" / "epoch_001.png")
    assert main(["report", str(tmp_path / "a"), "--wandb_workspace"]) == 0
    assert "data:image/png;base64," in (tmp_path / "a" / "version_0" / "report.html").read_text()
    assert (tmp_path / "a" / "version_0" / "wandb_workspace.json").is_file()
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    opens_offline((tmp_path / "report.html").read_text())
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "is no run" in capsys.readouterr().err


def test_the_command_needs_neither_torch_nor_lightning(tmp_path):
    import subprocess
    import sys

    written(tmp_path / "a" / "version_0", config(["Depth"]), train__loss=[1, 2])
    code = f"import sys; from densepred.cli import main; main(['report', {str(tmp_path / 'a')!r}]); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "pytorch_lightning", "numpy", "wandb"} & set(loaded) == set()
