"""The base of every datamodule: order, random numbers, batches, workers, the check before the first step."""

import json
from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import BatchSampler, DataLoader

from densepred.data.collate import Collate
from densepred.data.datamodule import DenseDataModule, default_workers
from densepred.data.dataset import DenseDataset, Filler, to_tensor
from densepred.data.sampler import EpochSampler, EvaluationSampler
from densepred.data.transforms import FlipLeftRight, ScaleCrop
from densepred.data.voc import PascalVOCDataModule
from densepred.errors import ConfigurationError, DataError
from densepred.sample import SAMPLE_KINDS, Kind, counted, valid_depth, valid_normals, valid_segmentation
from tests.fakes import write_palette_png, write_voc


class Numbered(DenseDataset):
    """Frame i is (8, 10) and holds i everywhere but in a corner; made on the fly."""

    def __init__(self, transforms=None, seed=0, length=6):
        super().__init__(transforms, seed)
        self.length = length

    def __len__(self):
        return self.length

    def read(self, index):
        image = np.full((8, 10, 3), index, np.uint8)
        image[0, 0] = 200
        return {
            "image": image,
            "segmentation": np.full((8, 10), index, np.uint8),
            "depth": np.full((8, 10), index, np.float32),
            "normals": np.full((8, 10, 3), (0, 0, -1), np.float32),
            "intrinsics": np.eye(3, dtype=np.float32),
            "name": f"{index}",
        }


class NumberedDataModule(DenseDataModule):
    length = 6

    def dataset(self, split, transforms):
        return Numbered(transforms, self.seed, self.length)


class Recorder(pl.LightningModule):
    """Notes what it is fed; its training is of no interest."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append((self.current_epoch, batch["name"], batch["image"].flatten(1)[:, 0].tolist()))
        return self.weight * 0

    def validation_step(self, batch, _):
        pass

    def predict_step(self, batch, _):
        return batch["name"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False, **(quiet | options))


def broken_voc(tmp_path, **options):
    root = write_voc(tmp_path, train=3, val=1)
    return root, PascalVOCDataModule(str(root), batch_size=1, num_workers=0, **options)


# --- samples


def test_a_sample_travels_as_small_plain_types():
    sample = Numbered()[3]
    described = {key: (tuple(value.shape), value.dtype) for key, value in sample.items() if key != "name"}
    assert described == {
        "image": ((3, 8, 10), torch.uint8),
        "segmentation": ((8, 10), torch.uint8),
        "depth": ((1, 8, 10), torch.float32),
        "normals": ((3, 8, 10), torch.float32),
        "intrinsics": ((3, 3), torch.float32),
    }
    assert sample["name"] == "3"
    assert all(value.is_contiguous() for value in sample.values() if isinstance(value, torch.Tensor))


def test_channels_rows_and_columns_keep_their_places():
    for channels in (1, 3, 4, 6):
        whole = np.arange(4 * 3 * channels, dtype=np.uint8).reshape(4, 3, channels)
        for image in (whole, whole[:, ::-1], whole[1:3, 1:], whole.astype(np.float32)):
            np.testing.assert_array_equal(to_tensor(image, Kind.IMAGE), np.transpose(image, (2, 0, 1)))
    labels = to_tensor(np.array([[0, 894]], np.uint16), Kind.LABEL)
    assert (labels.dtype, labels.tolist()) == (torch.int32, [[0, 894]])


def test_a_tensor_never_shares_read_only_memory(recwarn):
    image = np.zeros((2, 3, 3), np.uint8)
    image.setflags(write=False)
    to_tensor(image.transpose(0, 1, 2), Kind.IMAGE).add_(1)
    to_tensor(image[..., 0], Kind.LABEL).add_(1)
    assert image.max() == 0
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_a_key_of_no_declared_kind_is_refused_with_the_way_out():
    class Extra(Numbered):
        def read(self, index):
            return super().read(index) | {"parts": np.zeros((8, 10), np.uint8)}

    with pytest.raises(ConfigurationError, match=r"'parts'.*kinds = SAMPLE_KINDS \| \{'parts': Kind.LABEL\}"):
        Extra()[0]


def test_a_datamodule_may_declare_further_kinds():
    class Extra(Numbered):
        def read(self, index):
            return super().read(index) | {"parts": np.zeros((8, 10), np.uint8)}

    class ExtraDataModule(DenseDataModule):
        kinds = SAMPLE_KINDS | {"parts": Kind.LABEL}

        def dataset(self, split, transforms):
            return Extra(transforms, self.seed)

    data = ExtraDataModule(batch_size=2, num_workers=0, train_transforms=[ScaleCrop(size=(4, 4))])
    assert next(iter(data.train_dataloader()))["parts"].shape == (2, 4, 4)


def test_random_numbers_are_a_function_of_seed_epoch_and_index_alone():
    def draw(seed, index):
        return Numbered(SampleTransformsOfNoise(), seed)[index]["image"]

    torch.testing.assert_close(draw(1, (4, 2)), draw(1, (4, 2)))
    for other in [(2, (4, 2)), (1, (5, 2)), (1, (4, 3))]:
        assert not torch.equal(draw(1, (4, 2)) - 2, draw(other[0], other[1]) - other[1][1])


def SampleTransformsOfNoise():  # noqa: N802
    from densepred.data.transforms import SampleTransforms

    return SampleTransforms([A.GaussNoise(std_range=(0.2, 0.2), p=1.0)])


# --- order


def test_every_epoch_draws_every_sample_once_in_another_order():
    sampler = EpochSampler(50, seed=3)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert {drawn for drawn, _ in draws} == {epoch}
        orders.append([index for _, index in draws])
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_is_a_function_of_seed_and_epoch_and_not_of_their_sum():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(1, 4) == order(1, 4)
    assert order(1, 4) != order(4, 1)
    assert order(0, 1) != order(1, 0)


@pytest.mark.parametrize("length", [12, 11, 2])
def test_batches_of_all_processes_together_are_those_of_one_process_with_the_batch_of_all(length):
    def batches(processes, size):
        ranks = [EpochSampler(length, seed=5, num_replicas=processes, rank=rank) for rank in range(processes)]
        draws = [list(BatchSampler(sampler, size, drop_last=True)) for sampler in ranks]
        return [set().union(*together) for together in zip(*draws, strict=True)]

    alone = batches(1, 4)
    assert [len(batch) for batch in alone] == [4] * (length // 4)
    assert batches(2, 2) == alone
    assert batches(4, 1) == alone


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 12])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_deals_out_the_batches_of_one_process_and_all_take_equally_many(length, processes):
    alone = [list(range(length))[start : start + 2] for start in range(0, length, 2)]
    ranks = [EvaluationSampler(length, 2, processes, rank) for rank in range(processes)]
    dealt = [list(BatchSampler(sampler, 2, drop_last=False)) for sampler in ranks]
    assert len({len(batches) for batches in dealt}) == 1
    real = [batch for together in zip(*dealt, strict=True) for batch in together if not isinstance(batch[0], Filler)]
    assert real == alone
    assert [len(sampler) for sampler in ranks] == [sum(map(len, batches)) for batches in dealt]
    unfilled = [list(EvaluationSampler(length, 2, processes, rank, fill=False)) for rank in range(processes)]
    assert sorted(index for part in unfilled for index in part) == list(range(length))


def test_a_filler_shows_an_image_of_which_nothing_is_known():
    sample = Numbered()[Filler(3)]
    assert sample["image"][0, 1, 1] == 3
    assert not valid_segmentation(sample["segmentation"]).any()
    assert not valid_depth(sample["depth"]).any()
    assert not valid_normals(sample["normals"]).any()
    assert counted(Collate(SAMPLE_KINDS)([sample])) == 0
    assert counted(Collate(SAMPLE_KINDS)([sample, Numbered()[3]])) == 1
    assert counted({"image": torch.zeros(2, 3, 8, 10)}) == 2


def test_a_set_too_small_for_the_processes_is_refused_before_the_first_step(monkeypatch):
    data = NumberedDataModule(batch_size=4, num_workers=0)
    monkeypatch.setattr(data, "_processes", lambda: (2, 0))
    with pytest.raises(ConfigurationError, match=r"6, shared by 2 processes, .* Set batch_size to 3 or less"):
        data.train_dataloader()
    monkeypatch.setattr(data, "_processes", lambda: (7, 0))
    with pytest.raises(ConfigurationError, match="Use fewer processes"):
        data.train_dataloader()


def test_the_trainer_counts_the_epochs_and_a_resumed_run_goes_on_with_their_order(tmp_path):
    flips = [FlipLeftRight(p=0.5)]

    def fit(**options):
        data, model = NumberedDataModule(batch_size=2, num_workers=0, train_transforms=flips), Recorder()
        runner = trainer(tmp_path, max_epochs=options.pop("epochs"))
        runner.fit(model, data, **options)
        return model.seen, runner

    whole, _ = fit(epochs=4)
    start, stopped = fit(epochs=2)
    stopped.save_checkpoint(tmp_path / "a.ckpt")
    rest, _ = fit(epochs=4, ckpt_path=str(tmp_path / "a.ckpt"))
    assert start + rest == whole
    names = [tuple(name for epoch, batch, _ in whole if epoch == e for name in batch) for e in range(4)]
    assert len(set(names)) == 4


@pytest.mark.slow
def test_workers_give_the_same_batches_as_none(tmp_path):
    def seen(workers):
        data = NumberedDataModule(batch_size=2, num_workers=workers, train_transforms=[FlipLeftRight(), A.GaussNoise()])
        model = Recorder()
        trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(model, data)
        return model.seen

    assert seen(0) == seen(2)


def test_evaluation_and_prediction_see_every_sample_once_in_order(tmp_path):
    data = NumberedDataModule(batch_size=4, num_workers=0)
    data.length = 7
    assert [name for batch in data.val_dataloader() for name in batch["name"]] == list("0123456")
    predicted = trainer(tmp_path).predict(Recorder(), data)
    assert [name for batch in predicted for name in batch] == list("0123456")


def test_training_batches_are_all_full():
    data = NumberedDataModule(batch_size=4, num_workers=0)
    assert [len(batch["name"]) for batch in data.train_dataloader()] == [4]


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size 7 is larger than the training set of 6"):
        NumberedDataModule(batch_size=7, num_workers=0).train_dataloader()


def test_a_batch_larger_than_a_process_has_samples_is_refused():
    data = NumberedDataModule(batch_size=4, num_workers=0)
    data.trainer = SimpleNamespace(world_size=2, global_rank=1)
    with pytest.raises(ConfigurationError, match=r"set of 6, shared by 2 processes, .* Set batch_size to 3 or less"):
        data.train_dataloader()


def test_an_empty_split_is_refused():
    data = NumberedDataModule(batch_size=1)
    data.length = 0
    with pytest.raises(DataError, match="the train split is empty"):
        data.setup("fit")


def test_an_unsafe_pipeline_is_refused_where_the_datamodule_is_built():
    with pytest.raises(ConfigurationError, match="HorizontalFlip"):
        NumberedDataModule(train_transforms=[A.HorizontalFlip()])


def test_workers_leave_a_core_to_the_training_process(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert [default_workers(processes) for processes in (1, 2, 12)] == [11, 5, 0]


# --- batches


def frame(height, width, value=1):
    return {
        "image": torch.full((3, height, width), value, dtype=torch.uint8),
        "segmentation": torch.full((height, width), value, dtype=torch.uint8),
        "depth": torch.full((1, height, width), float(value)),
        "normals": torch.full((3, height, width), float(value)),
        "intrinsics": torch.eye(3),
        "name": f"{height}x{width}",
    }


def test_equal_sizes_are_stacked_without_a_size_entry():
    batch = Collate(SAMPLE_KINDS, training=True)([frame(4, 5, 1), frame(4, 5, 2)])
    assert "size" not in batch
    assert batch["image"].dtype == torch.uint8
    assert batch["image"][:, 0, 0, 0].tolist() == [1, 2]
    assert batch["name"] == ["4x5", "4x5"]


def test_different_sizes_are_padded_right_and_bottom_with_missing():
    batch = Collate(SAMPLE_KINDS)([frame(4, 5), frame(3, 7)])
    assert batch["size"].tolist() == [[4, 5], [3, 7]]
    assert {key: tuple(batch[key].shape) for key in ("image", "segmentation", "depth", "normals", "intrinsics")} == {
        "image": (2, 3, 4, 7), "segmentation": (2, 4, 7), "depth": (2, 1, 4, 7), "normals": (2, 3, 4, 7),
        "intrinsics": (2, 3, 3),
    }  # fmt: skip
    inside = torch.zeros(2, 4, 7, dtype=torch.bool)
    inside[0, :4, :5] = inside[1, :3, :7] = True
    assert (batch["segmentation"] == torch.where(inside, 1, 255)).all()
    assert (batch["depth"][:, 0] == inside.float()).all()
    assert (batch["normals"] == inside[:, None].float()).all()
    assert (batch["image"] == 1).all()


def test_different_sizes_in_training_say_to_add_a_crop():
    with pytest.raises(ConfigurationError, match=r"'3x7' is \(3, 7\).*Add a crop to train_transforms.*ScaleCrop"):
        Collate(SAMPLE_KINDS, training=True)([frame(4, 5), frame(3, 7)])


def test_samples_of_different_keys_are_refused():
    other = frame(4, 5)
    del other["depth"]
    with pytest.raises(ConfigurationError, match="must hold the same keys"):
        Collate(SAMPLE_KINDS)([frame(4, 5), other])


# --- the check before the first step


def damage(root, what):
    name = "2007_000001"
    image, label = root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png"
    if what == "value":
        write_palette_png(label, np.where(np.indices((64, 74)).sum(0) < 5, 77, 0))
    elif what == "size":
        write_palette_png(label, np.zeros((10, 20)))
    elif what == "cut":
        image.write_bytes(image.read_bytes()[:-40])
    elif what == "spoilt":
        content = bytearray(image.read_bytes())
        content[len(content) // 2 : -100] = np.random.default_rng(0).bytes(len(content) - len(content) // 2 - 100)
        image.write_bytes(bytes(content))
    elif what == "header":
        image.write_bytes(b"\x00" * 500 + image.read_bytes()[500:])
    elif what == "no image":
        image.unlink()
    elif what == "no label":
        label.unlink()
    elif what == "cut label":
        label.write_bytes(label.read_bytes()[:-60])
    return label if "label" in what or what in ("value", "size") else image


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("value", "label value 77 in 15 pixels, first at row 0, column 0. Expected 0 to 20"),
        ("size", r"its size is \(10, 20\) \(height, width\), but that of its image .*2007_000001.jpg is \(64, 74\)"),
        ("cut", "cannot be read: its end is missing: it is truncated"),
        ("spoilt", "cannot be read: its data are damaged"),
        ("header", "cannot be read: it is damaged from its start, or no picture"),
        ("no image", "there is no such file"),
        ("no label", "there is no such file"),
        ("cut label", "cannot be read: .*truncated"),
    ],
)
def test_a_broken_file_ends_in_one_error_before_the_first_step(tmp_path, what, cause):
    root, data = broken_voc(tmp_path)
    path = damage(root, what)
    with pytest.raises(DataError, match=cause) as error:
        data.setup("fit")
    message = str(error.value)
    assert str(path) in message
    assert "1 of 3 samples" in message
    assert "ImageSets/Segmentation" in message  # the expected layout
    assert "densepred prepare voc" in message  # and a way out


def test_many_broken_files_are_counted_and_the_first_are_named(tmp_path):
    root = write_voc(tmp_path, train=9, val=1)
    for image in (root / "JPEGImages").glob("*.jpg"):
        image.unlink()
    with pytest.raises(DataError, match="9 of 9 samples cannot be used") as error:
        PascalVOCDataModule(str(root)).setup("fit")
    assert str(error.value).count("there is no such file") == 5
    assert "and 4 more" in str(error.value)


def test_the_check_can_be_kept_to_headers_or_left_out(tmp_path):
    root, data = broken_voc(tmp_path, check="headers")
    damage(root, "value")
    data.setup("fit")
    damage(root, "size")
    with pytest.raises(DataError, match="its size is"):
        broken_voc_again(root, "headers").setup("fit")
    broken_voc_again(root, "none").setup("fit")


def broken_voc_again(root, check):
    return PascalVOCDataModule(str(root), check=check)


def test_whole_files_pass_the_check(tmp_path):
    _, data = broken_voc(tmp_path)
    data.setup()
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 3, "val": 1, "test": 1}


# torch takes five seconds to end a worker that has failed: one case has a worker
@pytest.mark.parametrize(
    ("what", "cause", "workers"), [("spoilt", "its data are damaged", 0), ("value", "value 77", 1)]
)
def test_at_read_time_a_broken_file_is_named_from_workers_too(tmp_path, what, cause, workers):
    root, _ = broken_voc(tmp_path)
    path = damage(root, what)
    data = PascalVOCDataModule(str(root), batch_size=1, num_workers=workers, check="none")
    with pytest.raises(DataError, match=cause) as error:
        list(data.train_dataloader())
    assert str(path) in str(error.value)


def test_images_of_different_sizes_in_training_ask_for_a_crop(tmp_path):
    root, _ = broken_voc(tmp_path)
    with pytest.raises(ConfigurationError, match="Add a crop to train_transforms"):
        list(PascalVOCDataModule(str(root), batch_size=3, num_workers=0).train_dataloader())


def test_a_set_that_is_made_on_the_fly_needs_no_check():
    data = NumberedDataModule(batch_size=2)
    data.setup()
    assert isinstance(data.val_dataloader(), DataLoader)


# --- from YAML


LISTED = [
    {"class_path": "densepred.data.transforms.FlipLeftRight"},
    {"class_path": "albumentations.RandomBrightnessContrast", "init_args": {"p": 0.5}},
]
SHORT = [
    {"class_path": "ScaleCrop", "init_args": {"size": [32, 48]}},
    {
        "class_path": "OneOf",
        "init_args": {"transforms": [{"class_path": "RandomGamma"}, {"class_path": "GaussNoise"}], "p": 0.3},
    },
]
COMPOSED = {"class_path": "albumentations.Compose", "init_args": {"transforms": LISTED}}


@pytest.mark.parametrize(
    ("configured", "names"),
    [
        (LISTED, ["FlipLeftRight", "RandomBrightnessContrast"]),
        (SHORT, ["ScaleCrop", "OneOf", "RandomGamma", "GaussNoise"]),
        (COMPOSED, ["FlipLeftRight", "RandomBrightnessContrast"]),
    ],
)
def test_transforms_can_be_configured_by_path_by_short_name_and_as_a_compose(tmp_path, configured, names):
    root = write_voc(tmp_path)
    parser = ArgumentParser()
    parser.add_subclass_arguments(DenseDataModule, "data")
    options = {"root": str(root), "batch_size": 2, "num_workers": 0, "train_transforms": configured}
    config = {"data": {"class_path": "densepred.data.voc.PascalVOCDataModule", "init_args": options}}
    # the file that a run keeps of its configuration must build the same again
    again = parser.parse_string(parser.dump(parser.parse_string(json.dumps(config))))
    data = parser.instantiate_classes(again).data
    assert all(name in repr(data.train_transforms) for name in names)
    if configured is SHORT:
        assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 32, 48)
