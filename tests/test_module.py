from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from densepred.data.collate import Collate
from densepred.decoders.fcn import FCNDecoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError, WeightsError
from densepred.module import DensePredictor
from densepred.sample import Kind
from densepred.schedules import PolyLR
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.regression import Regression
from densepred.tasks.segmentation import Segmentation

CLASSES = 4


def sample(index: int, size: tuple[int, int] = (40, 56)) -> dict:
    random = np.random.default_rng(index)
    normals = random.normal(size=(3, *size)).astype(np.float32)
    labels = random.integers(0, CLASSES, size).astype(np.uint8)
    labels[:3] = 255
    depth = random.uniform(1, 5, (1, *size)).astype(np.float32)
    depth[:, :, :4] = 0
    return {
        "image": torch.from_numpy(random.integers(0, 256, (3, *size), dtype=np.uint8)),
        "segmentation": torch.from_numpy(labels),
        "depth": torch.from_numpy(depth),
        "normals": torch.from_numpy(normals / np.linalg.norm(normals, axis=0)),
        "name": f"fake/{index}",
    }


def loader(count: int = 4, batch_size: int = 2, size: tuple[int, int] = (40, 56)) -> DataLoader:
    return DataLoader([sample(i, size) for i in range(count)], batch_size)


def build(**options) -> DensePredictor:
    tasks = options.pop("tasks", [Segmentation(CLASSES), Depth(weight=0.5), Normals()])
    return DensePredictor(ResNetEncoder("resnet18"), partial(UNetDecoder, widths=(16, 16, 8, 8)), tasks, **options)


def trainer(folder, **options) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=folder, **{**defaults, **options})


def test_a_module_built_in_python_reloads_from_its_checkpoint_alone(tmp_path):
    module = build(auxiliary=partial(FCNDecoder, finest_stride=16), encoder_lr_scale=0.5)
    run = trainer(tmp_path, enable_checkpointing=False)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "x.ckpt")
    torch.load(tmp_path / "x.ckpt", weights_only=True)
    again = DensePredictor.load_from_checkpoint(tmp_path / "x.ckpt").eval()
    image = sample(9)["image"][None]
    for name, prediction in module.eval()(image).items():
        torch.testing.assert_close(again(image)[name], prediction)
    assert again.rate_scales.encoder == 0.5
    assert again.network.auxiliary_decoders is not None


class Small(DensePredictor):
    """A class of one's own with arguments of its own."""

    def __init__(self, width: int, scale: float = 2.0) -> None:
        super().__init__(ResNetEncoder("resnet18"), partial(UNetDecoder, widths=(width,) * 4), [Depth()])
        self.scale = scale


def test_a_class_of_ones_own_reloads_by_its_own_arguments(tmp_path):
    run = trainer(tmp_path)
    run.strategy.connect(Small(8))
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = Small.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert again.scale == 2.0
    torch.testing.assert_close(again.state_dict(), run.lightning_module.state_dict())


def test_reloading_never_asks_for_the_pretrained_weights_again(tmp_path):
    weights = tmp_path / "resnet18.pth"
    torch.save(ResNetEncoder("resnet18").state_dict(), weights)
    module = DensePredictor(ResNetEncoder("resnet18", weights=str(weights)), UNetDecoder, [Depth()])
    run = trainer(tmp_path)
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "x.ckpt")
    weights.unlink()
    again = DensePredictor.load_from_checkpoint(tmp_path / "x.ckpt")
    torch.testing.assert_close(again.state_dict(), module.state_dict())


def test_an_option_that_cannot_be_written_into_a_checkpoint_is_refused_when_the_module_is_built():
    with pytest.raises(ConfigurationError, match=r"optimizer = <function .*functools.partial"):
        build(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))


def test_the_loss_is_the_weighted_sum_of_the_tasks_losses_and_of_the_auxiliary_ones():
    module = build(auxiliary=partial(FCNDecoder, finest_stride=16), auxiliary_weight=0.25)
    module.log = lambda *args, **kwargs: None
    batch = next(iter(loader(size=(64, 64))))
    torch.manual_seed(1)
    total = module.training_step(batch, 0)
    planes = module.network.planes(batch["image"])
    expected = sum(
        scale * task.weight * task.loss_from_planes(planes[task.name + suffix], batch)
        for task in module.tasks
        for suffix, scale in (("", 1.0), ("/auxiliary", 0.25))
    )
    torch.testing.assert_close(total, expected)
    module.eval()
    assert set(module.network.planes(batch["image"])) == {"segmentation", "depth", "normals"}


def test_every_auxiliary_decoder_adds_its_weighted_loss():
    module = build(auxiliary=PointwiseDecoder, auxiliary_depth=2, auxiliary_weight=0.25, tasks=[Depth(weight=0.5)])
    module.log = lambda *args, **kwargs: None
    batch = next(iter(loader(size=(64, 64))))
    total = module.training_step(batch, 0)
    planes = module.network.planes(batch["image"])
    assert list(planes) == ["depth", "depth/auxiliary", "depth/auxiliary2"]
    losses = [module.tasks[0].loss_from_planes(planes[name], batch) for name in planes]
    assert len({loss.item() for loss in losses}) == 3
    torch.testing.assert_close(total, 0.5 * losses[0] + 0.125 * losses[1] + 0.125 * losses[2])


@pytest.mark.parametrize("size", [(33, 47), (64, 96)])
def test_predictions_have_the_images_size_and_their_tasks_meaning(size):
    predictions = build().eval()(sample(0, size)["image"][None])
    assert predictions["segmentation"].shape == (1, *size)
    assert predictions["segmentation"].max() < CLASSES
    assert predictions["depth"].shape == (1, 1, *size)
    torch.testing.assert_close(predictions["normals"].norm(dim=1), torch.ones(1, *size))


def test_validation_metrics_are_those_of_the_whole_set_and_not_a_mean_over_batches(tmp_path):
    module = build(tasks=[Segmentation(CLASSES)])
    data = loader(5, batch_size=2, size=(33, 47))
    metrics = trainer(tmp_path, enable_checkpointing=False).validate(module, data, verbose=False)[0]
    matrix = np.zeros((CLASSES, CLASSES))
    module.eval()
    for item in data.dataset:
        with torch.no_grad():
            predicted = module(item["image"][None])["segmentation"][0].numpy()
        target = item["segmentation"].numpy()
        np.add.at(matrix, (target[target != 255], predicted[target != 255]), 1)
    hits = np.diag(matrix)
    with np.errstate(invalid="ignore"):
        expected = np.nanmean(hits / (matrix.sum(0) + matrix.sum(1) - hits))
    assert metrics["val/segmentation/miou"] == pytest.approx(expected, abs=1e-6)


def test_the_encoder_learns_at_its_own_rate_under_a_schedule_of_the_trainers_length(tmp_path):
    module = build(
        optimizer=partial(torch.optim.SGD, lr=0.1), lr_scheduler=partial(PolyLR, power=1.0), encoder_lr_scale=0.01
    )
    run = trainer(tmp_path, max_epochs=4, enable_checkpointing=False, limit_val_batches=0)
    seen = []

    class Spy(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    run.callbacks.append(Spy())
    run.fit(module, loader())
    assert seen == pytest.approx(np.array([[0.001 * f, 0.1 * f] for f in 1 - np.arange(8) / 8]))
    covered = {id(p) for group in module.build_optimizer().param_groups for p in group["params"]}
    assert covered == {id(p) for p in module.parameters()}


def test_a_task_of_any_name_and_a_mask_are_padded_with_missing_where_the_image_is(tmp_path):
    flow = Regression(2, name="flow")
    second = Segmentation(CLASSES, name="second")
    module = build(tasks=[flow, second])
    module.log = lambda *args, **kwargs: None
    batch = next(iter(loader(size=(40, 56))))
    batch |= {"flow": torch.rand(2, 2, 40, 56), "flow_valid": torch.ones(2, 1, 40, 56), "second": batch["segmentation"]}
    with torch.no_grad():
        loss = module.eval().training_step(batch, 0)
        planes = {k: v[..., :40, :56] for k, v in module.network(batch["image"]).items()}
    labels = torch.nn.functional.cross_entropy(planes["second"], batch["second"].long(), ignore_index=255)
    torch.testing.assert_close(loss, (planes["flow"] - batch["flow"]).square().mean() + labels)


def pooled(planes, sizes):
    """The pixels of each image, without its padding, in one line."""
    own = [each[..., :h, :w].reshape(*each.shape[:-2], h * w) for each, (h, w) in zip(planes, sizes, strict=True)]
    return np.concatenate(own, axis=-1)


def mean_iou(prediction, target):
    counts = [((prediction == k) & (target == k), (prediction == k) | (target == k)) for k in np.unique(target)]
    return np.mean([hit.sum() / union.sum() for hit, union in counts])


def iou_of_present(prediction, target):
    hits, unions = (prediction & target).sum((0, 2)), (prediction | target).sum((0, 2))
    return np.mean(hits / unions)


def rmse(prediction, target):
    return np.sqrt(np.mean((prediction - target) ** 2))


@pytest.mark.parametrize(
    ("task", "draw", "score"),
    [
        (Segmentation(1, mode="binary"), lambda random, size: random.integers(0, 2, size, np.uint8), mean_iou),
        (Segmentation(4), lambda random, size: random.integers(0, 4, size, np.int32), mean_iou),
        (
            Segmentation(3, mode="multilabel", class_weights=[1.0, 2.0, 3.0]),
            lambda random, size: random.integers(0, 2, (3, *size), np.uint8),
            iou_of_present,
        ),
        (
            Regression(2, name="flow"),
            lambda random, size: random.normal(size=(2, *size)).astype(np.float32) + 1,
            rmse,
        ),
    ],
    ids=["binary", "int32", "multilabel", "flow"],
)
def test_a_task_of_any_kind_trains_and_is_scored_over_the_pixels_of_images_of_different_sizes(
    tmp_path, task, draw, score
):
    random = np.random.default_rng(0)
    kinds = {"image": Kind.IMAGE, task.name: task.kind, "name": Kind.NAME}
    samples = [
        {
            "image": torch.from_numpy(random.integers(0, 256, (3, *size), np.uint8)),
            task.name: torch.from_numpy(draw(random, size)),
            "name": str(size),
        }
        for size in [(40, 56), (48, 40)]
    ]
    module = build(tasks=[task], share_decoder=True, auxiliary=PointwiseDecoder)
    run = trainer(tmp_path, enable_checkpointing=False)
    run.fit(module, DataLoader([samples[0]] * 2, 2))
    assert run.callback_metrics["train/loss"].isfinite()
    data = DataLoader(samples, 2, collate_fn=Collate(kinds))
    metrics = run.validate(module, data, verbose=False)[0]
    batch = next(iter(data))
    with torch.no_grad():
        predictions = module.eval()(batch["image"])[task.name].numpy()
    targets = [item[task.name][None].numpy() for item in samples]
    sizes = [tuple(item["image"].shape[-2:]) for item in samples]
    seen, true = (pooled(planes, sizes) for planes in (np.split(predictions, 2), targets))
    monitor = f"val/{task.name}/{task.monitor[0]}"
    assert metrics[monitor] == pytest.approx(score(seen, true), rel=1e-5)


class Data(pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.classes = {"segmentation": ["floor", "wall", "box"]}

    def train_dataloader(self):
        return loader()


def test_classes_that_differ_from_the_datas_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(ConfigurationError, match=r"'segmentation' has 4 classes .*Data has 3 \(floor, wall, box\)"):
        trainer(tmp_path).fit(build(), datamodule=Data())


def test_class_names_come_from_the_data_into_metrics_and_checkpoint(tmp_path):
    samples = [{**sample(i), "segmentation": sample(i)["segmentation"] % 3} for i in range(2)]
    data = Data()
    data.train_dataloader = lambda: DataLoader(samples, 2)
    run = trainer(tmp_path, enable_checkpointing=False)
    module = build(tasks=[Segmentation(3)])
    run.fit(module, datamodule=data)
    assert set(module.scores["val"].metrics["segmentation"].compute()) >= {"iou/floor", "iou/wall", "iou/box"}
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert DensePredictor.load_from_checkpoint(tmp_path / "x.ckpt").tasks[0].classes == ["floor", "wall", "box"]


class Furniture(Segmentation):
    def __init__(self):
        super().__init__(["floor", "wall", "chair"])


def test_a_task_whose_classes_are_its_own_is_compared_by_name(tmp_path):
    with pytest.raises(ConfigurationError, match=r"\(floor, wall, chair\), Data has 3 \(floor, wall, box\)"):
        trainer(tmp_path).fit(build(tasks=[Furniture()]), datamodule=Data())


@pytest.mark.parametrize(
    ("names", "problem"), [(("depth", "depth"), "used twice"), (("image",), "is taken"), (("a b",), "not a plain name")]
)
def test_task_names_that_cannot_be_keys_are_refused(names, problem):
    with pytest.raises(ConfigurationError, match=problem):
        build(tasks=[Depth(name=name) for name in names])


def test_images_too_small_for_the_coarsest_map_are_refused_with_the_way_out():
    with pytest.raises(ConfigurationError, match=r"32 x 60.*more than 32 pixels"):
        build()(torch.zeros(1, 3, 32, 60))


def test_a_shared_decoder_gives_each_task_its_own_planes():
    module = build(share_decoder=True)
    assert len(list(module.network.decoders)) == 1
    planes = module.network.planes(torch.rand(1, 3, 64, 64))
    assert {name: value.shape[1] for name, value in planes.items()} == {
        "segmentation": CLASSES,
        "depth": 1,
        "normals": 3,
    }


def stage(finest_stride: int, **options) -> DensePredictor:
    decoder = partial(FCNDecoder, finest_stride=finest_stride)
    return DensePredictor(ResNetEncoder("resnet18"), decoder, [Segmentation(CLASSES)], **options)


def test_each_stage_of_an_fcn_starts_from_the_checkpoint_of_the_one_before(tmp_path, capsys):
    previous, image = stage(32), torch.rand(1, 3, 64, 96)
    torch.nn.init.normal_(previous.network.decoders["segmentation"].score.weight)
    for finest in (16, 8):
        first = trainer(tmp_path, max_steps=1)
        first.fit(previous, loader())
        first.save_checkpoint(tmp_path / f"{finest}.ckpt")
        following = stage(finest, init_from=tmp_path / f"{finest}.ckpt")
        # the new skip's weight and bias are all that is new, and it adds zero
        assert "missing in the file, left as initialised (2):" in capsys.readouterr().out
        old, new = (m.eval().network.planes(image)["segmentation"] for m in (previous, following))
        torch.testing.assert_close(new, torch.nn.functional.interpolate(old, scale_factor=2.0, mode="bilinear"))
        assert following.hparams["init_from"] is None
        previous = following


def test_a_run_starts_from_one_of_other_classes_or_another_task_and_says_what_it_left_out(tmp_path, capsys):
    old = build(tasks=[Segmentation(CLASSES)])
    trainer(tmp_path, max_steps=1).fit(old, loader())
    torch.save({"state_dict": old.state_dict()}, tmp_path / "old.ckpt")
    new = build(tasks=[Segmentation(CLASSES + 3)], init_from=tmp_path / "old.ckpt")
    shown = capsys.readouterr().out
    assert "decoders.segmentation.score.weight  4 x 8 x 1 x 1 in the file, 7 x 8 x 1 x 1 here" in shown
    decoders = [module.network.decoders["segmentation"].state_dict() for module in (old, new)]
    assert all(torch.equal(value, decoders[1][key]) for key, value in decoders[0].items() if "score" not in key)
    assert torch.equal(old.network.encoder.layer4[0].conv1.weight, new.network.encoder.layer4[0].conv1.weight)
    depth = build(tasks=[Depth()], init_from=tmp_path / "old.ckpt").network.decoders["depth"].state_dict()
    assert torch.equal(depth["steps.0.convs.0.0.weight"], decoders[0]["steps.0.convs.0.0.weight"])


def test_a_file_of_which_nothing_fits_is_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"no tensor of .* fits the network"):
        build(init_from=tmp_path / "other.pth")
