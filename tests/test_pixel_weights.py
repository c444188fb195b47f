"""Weights of pixels: what they do to the loss, fused or not, and how the U-Net's reach it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densepred.data.cell_borders import border_weights
from densepred.data.isbi import ISBI2012, ISBIDataModule
from densepred.data.transforms import ElasticDeformation, FlipLeftRight, ScaleCrop
from densepred.errors import ConfigurationError
from densepred.losses.fused import upsampled_cross_entropy
from densepred.losses.overlap import DiceLoss
from densepred.losses.segmentation import BinaryCrossEntropyLoss, CrossEntropyLoss
from densepred.tasks.segmentation import Segmentation
from tests.fakes import write_isbi

SIZE = (23, 31)


def drawn(planes=(6, 9), classes=4, dtype=torch.float64):
    labels = torch.randint(classes, (2, *SIZE))
    labels[0, :5] = 255
    weights = torch.rand(2, *SIZE, dtype=dtype) * 3
    weights[1, 4] = 0
    return torch.randn(2, classes, *planes, dtype=dtype, requires_grad=True), labels, weights


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, [0.5, 1.0, 2.0, 0.1]])
def test_the_weighted_mean_is_the_one_written_out(class_weights, smoothing):
    output, labels, weights = drawn(SIZE)
    of_class = torch.tensor(class_weights or [1.0] * 4, dtype=torch.float64)
    logs = output.log_softmax(1)
    total, norm = 0.0, 0.0
    for image, row, column in (labels != 255).nonzero().tolist():
        true, weight = int(labels[image, row, column]), weights[image, row, column]
        here = -logs[image, :, row, column] * of_class
        total = total + weight * ((1 - smoothing) * here[true] + smoothing * here.mean())
        norm = norm + weight * of_class[true]
    found = CrossEntropyLoss(class_weights, smoothing)(output, labels, weights)
    torch.testing.assert_close(found, total / norm)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, [0.5, 1.0, 2.0, 0.1]])
def test_fused_with_the_upsampling_it_is_the_same_number_and_gradient(class_weights, smoothing):
    planes, labels, weights = drawn()
    of_class = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    wide = F.interpolate(planes, SIZE, mode="bilinear")
    expected = CrossEntropyLoss(class_weights, smoothing)(wide, labels, weights)
    found = upsampled_cross_entropy(planes, labels, of_class, smoothing, weights)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, planes, retain_graph=True)[0] for loss in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("upsampled", [False, True])
def test_weights_of_one_change_nothing_and_of_zero_leave_nothing(upsampled):
    planes, labels, weights = drawn((6, 9) if upsampled else SIZE)
    ones = torch.ones_like(weights)
    torch.testing.assert_close(
        upsampled_cross_entropy(planes, labels, pixel_weights=ones), upsampled_cross_entropy(planes, labels)
    )
    # what is missing does not count, whatever its weight
    ones[labels == 255] = float("nan")
    torch.testing.assert_close(
        upsampled_cross_entropy(planes, labels, pixel_weights=ones), upsampled_cross_entropy(planes, labels)
    )
    nothing = upsampled_cross_entropy(planes, labels, pixel_weights=torch.zeros_like(weights))
    assert nothing == 0
    assert (torch.autograd.grad(nothing, planes)[0] == 0).all()


def test_binary_cross_entropy_is_the_weighted_mean_of_torchs():
    output = torch.randn(2, 1, *SIZE, dtype=torch.float64)
    labels, weights = torch.randint(2, (2, *SIZE)), torch.rand(2, *SIZE, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(output[:, 0], labels.double(), weights, reduction="sum")
    found = BinaryCrossEntropyLoss()(output, labels, weights)
    torch.testing.assert_close(found, expected / weights.sum())
    labels[0] = 255
    found = BinaryCrossEntropyLoss()(output, labels, weights)
    expected = F.binary_cross_entropy_with_logits(output[1, 0], labels[1].double(), weights[1], reduction="sum")
    torch.testing.assert_close(found, expected / weights[1].sum())


def test_weights_of_another_size_are_refused():
    planes, labels, weights = drawn()
    for loss in (
        lambda: upsampled_cross_entropy(planes, labels, pixel_weights=weights[:, :-1]),
        lambda: CrossEntropyLoss()(F.interpolate(planes, SIZE), labels, weights[:1]),
    ):
        with pytest.raises(ConfigurationError, match="expected one weight for each label"):
            loss()


def test_a_task_takes_the_weights_of_its_name_and_refuses_a_loss_that_cannot():
    planes, labels, weights = drawn()
    batch = {"image": torch.zeros(2, 3, *SIZE), "segmentation": labels, "segmentation_weight": weights[:, None]}
    expected = upsampled_cross_entropy(planes, labels, pixel_weights=weights)
    task = Segmentation(4)
    torch.testing.assert_close(task.loss_from_planes(planes, batch), expected)
    torch.testing.assert_close(task.compute_loss(F.interpolate(planes, SIZE, mode="bilinear"), batch), expected)
    # those of another task are not its own
    other = {**batch, "depth_weight": batch.pop("segmentation_weight")}
    other.pop("segmentation_weight")
    torch.testing.assert_close(task.loss_from_planes(planes, other), upsampled_cross_entropy(planes, labels))
    batch["segmentation_weight"] = weights[:, None]
    with pytest.raises(ConfigurationError, match=r"'segmentation_weight', a weight for each pixel, which DiceLoss"):
        Segmentation(4, loss=DiceLoss()).loss_from_planes(planes, batch)


def test_a_task_pads_the_weights_with_its_labels():
    labels, weights = torch.ones(1, 3, 4, dtype=torch.uint8), torch.ones(1, 1, 3, 4)
    padded = Segmentation(2).pad({"segmentation": labels, "segmentation_weight": weights}, (4, 6))
    assert padded["segmentation_weight"].shape == (1, 1, 4, 6)
    assert np.array_equal(padded["segmentation_weight"][:, 0] == 0, padded["segmentation"] == 255)


def test_isbi_yields_the_weights_of_its_borders_moved_with_the_labels(tmp_path):
    root = write_isbi(tmp_path)
    plain = ISBI2012(root, "all", border_weights=True)
    for index in (0, 1, 0):
        sample = plain[index]
        np.testing.assert_array_equal(
            sample["segmentation_weight"][0].numpy(), border_weights(sample["segmentation"].numpy())
        )
        sample["segmentation_weight"].zero_()  # the data set's own stay
    assert "segmentation_weight" not in ISBI2012(root, "all")[0]
    data = ISBIDataModule(
        str(root),
        val_slices=2,
        border_weights=True,
        num_workers=0,
        train_transforms=[FlipLeftRight(p=1.0), ScaleCrop(size=(64, 64), scale=(1.0, 1.0))],
    )
    data.setup("fit")
    flipped = data.datasets["train"][1]
    expected = plain[1]["segmentation_weight"].flip(-1)
    torch.testing.assert_close(flipped["segmentation_weight"], expected)
    assert next(iter(data.val_dataloader()))["segmentation_weight"].shape == (1, 1, 64, 64)


def test_bent_slices_keep_weights_and_labels_together(real_data):
    data = ISBIDataModule(
        str(real_data / "isbi2012"),
        border_weights=True,
        num_workers=0,
        check="none",
        train_transforms=[ElasticDeformation(sigma=10.0)],
    )
    data.setup("fit")
    sample, before = (data.dataset("train", transforms)[0] for transforms in (data.train_transforms, None))
    labels, weights = sample["segmentation"], sample["segmentation_weight"][0]
    assert torch.equal(labels == 255, weights == 0)
    # inside cells there is the balance of classes alone, one number
    assert weights[labels == 1].unique().numel() == 1
    assert weights[labels == 0].min() > weights[labels == 1].max()
    # the picture moved with its labels: membranes are as dark as before
    for label in (0, 1):
        now, then = (one["image"][0][one["segmentation"] == label].float().mean() for one in (sample, before))
        assert abs(now - then) < 4
