"""The sheet of augmented samples: the very samples of training, with everything known about them."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from densepred.callbacks.targets import depth_range, drawing_tasks, target_shots
from densepred.cli import main
from densepred.data.rooms import RoomsDataModule
from densepred.data.transforms import MultitaskAugmentation
from densepred.palettes import CAMVID_PALETTE, VOID_COLOUR, colour_table
from densepred.sample import SAMPLE_KINDS, Kind
from tests.fakes import write_camvid

SIZE = (100, 128)  # 320 // 128 and 400 // 100 enlarge it by 2
ROOMS = {"size": list(SIZE), "train": 6, "val": 3, "num_workers": 0, "seed": 5}
PRESET = {"class_path": "MultitaskAugmentation", "init_args": {"size": list(SIZE), "strength": 1.0}}


def config(tmp_path, transforms=PRESET, **sections):
    data = {"class_path": "RoomsDataModule", "init_args": {**ROOMS, "train_transforms": transforms}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"data": data, **sections}))
    return path


def holds(sheet, picture):
    """Whether a picture (3, H, W), enlarged twice, stands somewhere in the sheet."""
    enlarged = picture.permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
    height, width = enlarged.shape[:2]
    corners = np.argwhere((sheet[: -height + 1, : -width + 1] == enlarged[0, 0]).all(-1))
    return any((sheet[y : y + height, x : x + width] == enlarged).all() for y, x in corners)


@pytest.mark.slow
def test_the_views_are_the_very_samples_of_the_first_epochs_of_training(tmp_path, capsys):
    output = tmp_path / "sheet.png"
    options = ["--config", str(config(tmp_path)), "--count", "2", "--repeat", "2", "--output", str(output)]
    assert main(["samples", *options]) == 0
    assert "sheet.png: 2 of 6 samples, as read and in 2 views each (seed 5)" in capsys.readouterr().out
    sheet = np.asarray(Image.open(output))
    data = RoomsDataModule(
        size=SIZE, train=6, val=3, num_workers=0, seed=5, batch_size=1, train_transforms=[MultitaskAugmentation(SIZE)]
    )
    data.train_transforms = data._transforms(MultitaskAugmentation(SIZE))  # alone, as in the config
    data.setup("fit")
    plain = {sample["name"]: sample for sample in (data.dataset("train", None)[index] for index in range(6))}
    loader = data.train_dataloader()
    drawn = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        drawn.append({batch["name"][0]: batch for batch in loader})
    first = list(drawn[0])
    for name in first[:2]:
        assert holds(sheet, plain[name]["image"])
        for epoch in (0, 1):
            assert holds(sheet, drawn[epoch][name]["image"][0])
    assert not holds(sheet, plain[first[2]]["image"])


def test_strength_seed_and_split_are_options_of_the_command_line(tmp_path, capsys):
    path = str(config(tmp_path))

    def drawn(*options):
        output = tmp_path / "sheet.png"
        assert main(["samples", "--config", path, "--count", "1", "--output", str(output), *options]) == 0
        return Image.open(output).tobytes(), capsys.readouterr().out

    usual, _ = drawn()
    assert drawn()[0] == usual
    assert drawn("--data.train_transforms.strength", "2")[0] != usual
    other, words = drawn("--seed", "6")
    assert other != usual
    assert "(seed 6)" in words
    assert "as read; the data have no eval_transforms" in drawn("--split", "val")[1]
    assert "as read (seed" in drawn("--repeat", "0")[1]


def test_classes_are_drawn_in_the_sets_own_colours_unless_the_run_has_others(tmp_path):
    root = write_camvid(tmp_path)
    data = {"class_path": "CamVidDataModule", "init_args": {"root": str(root), "num_workers": 0}}
    output = tmp_path / "sheet.png"
    path = tmp_path / "run.yaml"

    def colours(**sections):
        path.write_text(yaml.safe_dump({"data": data, **sections}))
        assert main(["samples", "--config", str(path), "--count", "2", "--output", str(output)]) == 0
        return {tuple(pixel) for pixel in np.asarray(Image.open(output)).reshape(-1, 3)}

    own = {tuple(colour) for colour in CAMVID_PALETTE}
    assert len(own & colours()) >= 3
    mine = [[index, 200 + index, 7] for index in range(11)]
    # its class weights are not there yet: nothing is built of the task
    options = {"classes": 11, "palette": mine, "class_weights": "not_yet.json"}
    tasks = [{"class_path": "Segmentation", "init_args": options}]
    shown = colours(model={"class_path": "DensePredictor", "init_args": {"tasks": tasks}})
    assert len({tuple(colour) for colour in mine} & shown) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no data are named. Give --config FILE"),
        (["--data", "RoomsDataModule", "--count", "0"], "--count is 0; expected a number of at least 1"),
        (["--data", "RoomsDataModule", "--output", "sheet.pdf"], "expected the name of a .png file"),
        (["--config", "nowhere.yaml"], "no file nowhere.yaml"),
    ],
)
def test_what_cannot_be_drawn_is_said(options, message, capsys):
    assert main(["samples", *options]) == 1
    assert message in capsys.readouterr().err


# --- the drawing ---


def sample(depth, **more):
    planes = {"image": torch.zeros(3, *depth.shape, dtype=torch.uint8), "depth": depth[None]}
    return planes | more


def test_one_scale_of_depth_serves_all_samples_and_the_legend_says_it_in_metres():
    near, far = sample(torch.linspace(1, 3, 100).view(10, 10)), sample(torch.linspace(3, 5, 100).view(10, 10))
    tasks = drawing_tasks([near, far], SAMPLE_KINDS, {})
    shots, (legend,) = target_shots([("near", near), ("far", far)], tasks)
    table = colour_table("viridis")
    low, high = np.quantile(np.r_[np.linspace(1, 3, 100), np.linspace(3, 5, 100)], [0.01, 0.99])
    for shot, depth in zip(shots, (near, far), strict=True):
        place = ((depth["depth"][0].numpy() - low) / (high - low)).clip(0, 1)
        expected = np.array(table)[(place * 255).round().astype(int)]
        difference = np.abs(shot.pictures["depth"][""].permute(1, 2, 0).numpy().astype(int) - expected)
        assert difference.max() <= 4  # a step of the table, where rounding falls to the other side
    words = [name for name, _ in legend.entries]
    np.testing.assert_allclose([float(word.removesuffix(" m")) for word in words], np.linspace(low, high, 6), rtol=6e-3)
    assert [list(colour) for _, colour in legend.entries] == [table[index] for index in (0, 51, 102, 153, 204, 255)]
    assert depth_range(near, tasks) == "1 to 3 m"
    assert depth_range(sample(torch.zeros(4, 4)), tasks) == ""


def test_every_target_is_drawn_by_its_kind_with_what_is_missing():
    kinds = SAMPLE_KINDS | {"border": Kind.WEIGHT, "parts": Kind.LABEL}
    labels = torch.tensor([[0, 1], [2, 255]], dtype=torch.uint8)
    one = sample(
        torch.ones(2, 2),
        segmentation=labels,
        parts=torch.zeros(2, 2, dtype=torch.int32),
        normals=torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 2, 2),
        border=torch.rand(1, 2, 2),
        intrinsics=torch.eye(3),
        name="one",
    )
    tasks = drawing_tasks([one], kinds, {"segmentation": ["floor", "wall", "sky"]})
    (shot,), legends = target_shots([("one", one)], tasks)
    assert (
        {task.name for task in tasks} == {"depth", "segmentation", "parts", "normals", "border"} == set(shot.pictures)
    )
    said = {legend.heading: [name for name, _ in legend.entries] for legend in legends}
    assert said["segmentation"] == ["floor", "wall", "sky", "void"]
    assert said["normals"] == ["right", "left", "up", "down", "towards the camera"]
    assert tuple(shot.pictures["segmentation"][""][:, 1, 1].tolist()) == VOID_COLOUR
    # a normal to the right has the legend's colour of right
    right = dict(next(legend for legend in legends if legend.heading == "normals").entries)["right"]
    assert tuple(shot.pictures["normals"][""][:, 0, 0].tolist()) == right
