"""Losses of labels: their values and gradients, against torch, torchvision, segmentation_models_pytorch and numpy."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from densepred.data import CamVid
from densepred.errors import ConfigurationError, DataError
from densepred.losses import (
    BinaryCrossEntropyLoss,
    BinaryFocalLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    LovaszSoftmaxLoss,
    SumLoss,
    TopKCrossEntropyLoss,
    count_labels,
    inverse_frequency_weights,
    median_frequency_weights,
)
from densepred.losses.fused import upsampled_cross_entropy
from densepred.losses.overlap import jaccard_increments
from densepred.losses.segmentation import cross_entropy
from densepred.tasks import Segmentation


def with_gradient(loss, output, *arguments):
    output = output.detach().clone().requires_grad_()
    value = loss(output, *arguments)
    value.backward()
    return value.detach(), output.grad


@pytest.fixture
def smp():
    return pytest.importorskip("segmentation_models_pytorch.losses")


def labelled(*size, classes=3):
    """Labels of which about a fifth is missing."""
    labels = torch.randint(0, classes, size, dtype=torch.uint8)
    labels[torch.rand(size) < 0.2] = 255
    return labels


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_torchs_with_class_weights_smoothing_and_void(weights, smoothing):
    output, labels = torch.randn(2, 3, 4, 5), labelled(2, 4, 5)
    given = None if weights is None else torch.tensor(weights)
    expected = with_gradient(
        lambda x: F.cross_entropy(x, labels.long(), given, ignore_index=255, label_smoothing=smoothing), output
    )
    torch.testing.assert_close(with_gradient(CrossEntropyLoss(weights, smoothing), output, labels), expected)


@pytest.mark.parametrize("loss", [cross_entropy, upsampled_cross_entropy])
def test_class_weights_count_relative_to_each_other(loss):
    planes, labels = torch.randn(1, 3, 2, 2), torch.randint(0, 3, (1, 2, 2) if loss is cross_entropy else (1, 8, 8))
    weights = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(loss(planes, labels, 1e-6 * weights), loss(planes, labels, weights))


def test_binary_cross_entropy_is_torchs_over_the_known_answers():
    output, target = torch.randn(2, 3, 4, 5), torch.randint(0, 2, (2, 3, 4, 5), dtype=torch.uint8)
    target[0, 1] = 255
    known = target != 255
    expected = F.binary_cross_entropy_with_logits(output[known], target[known].float())
    torch.testing.assert_close(BinaryCrossEntropyLoss()(output, target), expected)
    weights = torch.tensor([1.0, 4.0, 2.0])
    weighed = F.binary_cross_entropy_with_logits(
        output[known],
        target[known].float(),
        pos_weight=weights.view(1, 3, 1, 1).expand_as(output)[known],
    )
    torch.testing.assert_close(BinaryCrossEntropyLoss(weights.tolist())(output, target), weighed)


@pytest.mark.parametrize("loss", [BinaryCrossEntropyLoss(), BinaryFocalLoss(), DiceLoss(), LovaszSoftmaxLoss()])
def test_one_plane_takes_plain_label_maps(loss):
    output, target = torch.randn(2, 1, 4, 5), torch.randint(0, 2, (2, 4, 5))
    torch.testing.assert_close(loss(output, target), loss(output, target.unsqueeze(1)))


def test_255_is_a_class_where_there_are_that_many():
    output = torch.randn(1, 300, 1, 2)
    labels = torch.tensor([[[255, -1]]], dtype=torch.int32)
    expected = F.cross_entropy(output[..., :1], labels[..., :1].long())
    torch.testing.assert_close(CrossEntropyLoss()(output, labels), expected)
    torch.testing.assert_close(FocalLoss(gamma=0.0)(output, labels), expected)
    torch.testing.assert_close(upsampled_cross_entropy(output, labels), expected)


# Focal


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
def test_without_gamma_the_focal_loss_is_cross_entropy(weights):
    output, labels = torch.randn(2, 3, 4, 5), labelled(2, 4, 5)
    expected = with_gradient(CrossEntropyLoss(weights), output, labels)
    torch.testing.assert_close(with_gradient(FocalLoss(0.0, weights), output, labels), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_is_its_formula(gamma):
    output, labels = torch.randn(2, 3, 4, 5, dtype=torch.float64), labelled(2, 4, 5)
    probability = output.softmax(1).permute(0, 2, 3, 1)[labels != 255].numpy()
    true = probability[np.arange(len(probability)), labels[labels != 255].numpy()]
    expected = np.mean((1 - true) ** gamma * -np.log(true))
    assert FocalLoss(gamma)(output, labels).item() == pytest.approx(expected, rel=1e-9)
    weights = np.array([0.2, 1.0, 3.0])
    weight = weights[labels[labels != 255].numpy()]
    weighed = np.sum(weight * (1 - true) ** gamma * -np.log(true)) / weight.sum()
    assert FocalLoss(gamma, weights.tolist())(output, labels).item() == pytest.approx(weighed, rel=1e-6)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.75), (2.0, None), (0.5, 0.5)])
def test_the_binary_focal_loss_is_torchvisions(gamma, alpha):
    output, target = torch.randn(2, 3, 4, 5), torch.randint(0, 2, (2, 3, 4, 5))
    theirs = -1 if alpha is None else alpha
    expected = with_gradient(lambda x: sigmoid_focal_loss(x, target.float(), theirs, gamma, "mean"), output)
    torch.testing.assert_close(with_gradient(BinaryFocalLoss(gamma, alpha), output, target), expected)


def test_the_binary_focal_loss_is_segmentation_models_pytorchs_with_void(smp):
    output, target = torch.randn(2, 1, 4, 5), labelled(2, 4, 5, classes=2)
    theirs = smp.FocalLoss("binary", alpha=0.25, gamma=2.0, ignore_index=255)
    torch.testing.assert_close(
        BinaryFocalLoss(2.0, 0.25)(output, target), theirs(output, torch.where(target == 255, 255, target.long()))
    )


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_the_focal_gradient_is_finite_where_the_answer_is_sure(gamma):
    for logits in ([200.0, 0.0, 0.0], [-200.0, 0.0, 0.0], [0.0, 0.0, 0.0]):
        _, gradient = with_gradient(FocalLoss(gamma), torch.tensor(logits).view(1, 3, 1, 1), torch.zeros(1, 1, 1).int())
        assert gradient.isfinite().all()


# Hardest pixels


def pixel_losses(output, labels):
    """Cross-entropy of the known pixels of an image, greatest first."""
    losses = F.cross_entropy(output[None], labels[None].long(), ignore_index=255, reduction="none")[0]
    return losses[labels != 255].sort(descending=True).values


@pytest.mark.parametrize("k", [1, 7, 13])
def test_the_bootstrapped_loss_is_the_mean_of_each_images_k_largest(k):
    output, labels = torch.randn(3, 4, 5, 6), labelled(3, 5, 6, classes=4)
    expected = with_gradient(
        lambda x: torch.stack([pixel_losses(*pair)[:k] for pair in zip(x, labels, strict=True)]).mean(), output
    )
    torch.testing.assert_close(with_gradient(TopKCrossEntropyLoss(pixels=k), output, labels), expected)


def test_an_image_with_fewer_known_pixels_keeps_them_all_and_void_never_dilutes_the_mean():
    output, labels = torch.randn(2, 4, 5, 6), labelled(2, 5, 6, classes=4)
    labels[1] = 255
    labels[1, 0, :2] = 3
    for loss in (TopKCrossEntropyLoss(pixels=7), TopKCrossEntropyLoss(pixels=7, threshold=1e-30)):
        kept = torch.cat([pixel_losses(output[0], labels[0])[:7], pixel_losses(output[1], labels[1])])
        torch.testing.assert_close(loss(output, labels), kept.mean())
    assert TopKCrossEntropyLoss(pixels=1000)(output, labels).item() == pytest.approx(
        CrossEntropyLoss()(output, labels).item()
    )


def test_a_share_is_of_the_known_pixels_of_each_image_rounded_up():
    output, labels = torch.randn(2, 4, 5, 6), labelled(2, 5, 6, classes=4)
    losses = [pixel_losses(*pair) for pair in zip(output, labels, strict=True)]
    kept = torch.cat([of[: math.ceil(0.3 * len(of))] for of in losses])
    torch.testing.assert_close(TopKCrossEntropyLoss(share=0.3)(output, labels), kept.mean())
    torch.testing.assert_close(TopKCrossEntropyLoss(share=1.0)(output, labels), CrossEntropyLoss()(output, labels))


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("least", [2, 12])
def test_ohem_keeps_what_mmsegmentations_pixel_sampler_keeps(threshold, least):
    """Their rule, over the batch: sort the true class's probabilities; keep those below max(threshold, the k-th)."""
    output, labels = torch.randn(3, 4, 5, 6), labelled(3, 5, 6, classes=4)
    known = (labels != 255).numpy()
    index = np.where(known, labels.numpy(), 0).astype(int)
    true = np.take_along_axis(output.softmax(1).numpy(), index[:, None], 1)[:, 0][known]
    limit = max(np.sort(true)[min(least * len(output), len(true) - 1)], threshold)
    expected = -np.log(true[true < limit]).mean()
    loss = TopKCrossEntropyLoss(pixels=least, threshold=threshold, per_image=False)
    assert loss(output, labels).item() == pytest.approx(expected, rel=1e-5)


def test_the_bootstrapped_loss_of_a_uniform_prediction_is_ln_of_the_classes():
    loss = TopKCrossEntropyLoss(pixels=512 * 64)
    labels = labelled(1, 256, 512, classes=19)
    assert loss(torch.zeros(1, 19, 256, 512), labels).item() == pytest.approx(2.9444, abs=5e-5)


# Overlap


def test_the_dice_loss_is_segmentation_models_pytorchs_where_every_class_occurs(smp):
    for smooth in (0.0, 1.0):
        output, labels = torch.randn(2, 3, 4, 5), labelled(2, 4, 5)
        labels[0, 0, :3] = torch.arange(3)
        for classes, mode, target in (
            (3, "multiclass", labels),
            (1, "binary", torch.where(labels == 2, 1, labels)),
        ):
            theirs = smp.DiceLoss(mode, smooth=smooth, ignore_index=255)
            planes = output[:, :classes]
            expected = with_gradient(theirs, planes, target.long())
            # theirs adds it to half of numerator and denominator
            torch.testing.assert_close(with_gradient(DiceLoss(2 * smooth), planes, target), expected)


def dice(p, t, smooth):
    return 1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)


def test_dice_over_images_classes_weights_and_absent_ones_is_its_definition():
    output, labels = torch.randn(2, 3, 4, 5, dtype=torch.float64), labelled(2, 4, 5)
    labels[labels == 2] = 1
    labels[0][labels[0] == 0] = 1
    known, probability = (labels != 255).numpy(), output.softmax(1).numpy()
    each = np.array(
        [[dice(probability[b, c][known[b]], labels[b].numpy()[known[b]] == c, 1.0) for c in range(3)] for b in range(2)]
    )
    occurs = np.array([[False, True, False], [True, True, False]])
    weights = np.array([0.5, 1.0, 2.0])
    table = {
        (): each[occurs].mean(),
        ("count_absent",): each.mean(),
        ("class_weights",): (each * weights)[occurs].sum() / (occurs * weights).sum(),
    }
    for options, expected in table.items():
        given = {key: weights.tolist() if key == "class_weights" else True for key in options}
        assert DiceLoss(per_image=True, **given)(output, labels).item() == pytest.approx(expected, rel=1e-6)
    pooled = [dice(probability[:, c][known], labels.numpy()[known] == c, 1.0) for c in range(2)]
    assert DiceLoss()(output, labels).item() == pytest.approx(np.mean(pooled), rel=1e-6)


def test_dice_of_a_perfect_sure_prediction_is_zero_and_of_a_wrong_one_is_one():
    labels = torch.tensor([[[0, 1, 2, 2, 255]]])
    sure = F.one_hot(labels.clamp(max=2), 3).permute(0, 3, 1, 2) * 100.0
    assert DiceLoss(smooth=0.0)(sure, labels).item() == pytest.approx(0, abs=1e-6)
    assert DiceLoss(smooth=0.0)(sure.roll(1, 1), labels).item() == pytest.approx(1)


def berman(probability, truth):
    """The Lovasz extension as published: sorted errors times differences of the Jaccard loss (float64)."""
    errors = np.abs(truth - probability)
    order = np.argsort(-errors)
    truth = truth[order].astype(float)
    jaccard = 1 - (truth.sum() - truth.cumsum()) / (truth.sum() + (1 - truth).cumsum())
    return errors[order] @ np.diff(jaccard, prepend=0)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("count_absent", [False, True])
def test_lovasz_softmax_is_bermans(per_image, count_absent):
    output, labels = torch.randn(2, 4, 5, 6, dtype=torch.float64), labelled(2, 5, 6)  # class 3 does not occur
    labels[1][labels[1] == 0] = 1
    probability = output.softmax(1).numpy()
    groups = [[0], [1]] if per_image else [[0, 1]]
    values = []
    for group in groups:
        known = labels[group].numpy() != 255
        values += [
            berman(probability[group][:, c][known], labels[group].numpy()[known] == c)
            for c in range(4)
            if count_absent or (labels[group] == c).any()
        ]
    loss = LovaszSoftmaxLoss(per_image, count_absent)
    assert loss(output, labels).item() == pytest.approx(np.mean(values), rel=1e-6)


def test_lovasz_softmax_and_its_gradient_are_segmentation_models_pytorchs(smp):
    output, labels = torch.randn(2, 3, 4, 5), labelled(2, 4, 5)
    expected = with_gradient(smp.LovaszLoss("multiclass", ignore_index=255, from_logits=True), output, labels.long())
    torch.testing.assert_close(with_gradient(LovaszSoftmaxLoss(), output, labels), expected)


def test_lovasz_softmax_of_sure_predictions_is_one_minus_the_mean_iou():
    labels, wrong = labelled(2, 6, 7), torch.randint(0, 3, (2, 6, 7))
    known = labels != 255
    ious = [((labels == c) & (wrong == c)).sum() / ((labels == c) | (wrong == c))[known].sum() for c in range(3)]
    sure = 100.0 * F.one_hot(wrong, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(LovaszSoftmaxLoss()(sure, labels), 1 - torch.stack(ious).mean())


def test_the_increments_of_the_jaccard_loss_keep_their_digits_for_many_pixels():
    truth = torch.rand(400_000) < 0.3
    t = truth.double()
    jaccard = 1 - (t.sum() - t.cumsum(0)) / (t.sum() + (1 - t).cumsum(0))
    expected = jaccard.diff(prepend=torch.zeros(1, dtype=torch.float64))
    # float64's own difference is good to about 1e-16 / 1e-6 here; float32's would be wrong in the second digit
    torch.testing.assert_close(jaccard_increments(truth).double(), expected, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("loss", [DiceLoss(), LovaszSoftmaxLoss()])
def test_without_its_class_in_the_batch_a_binary_overlap_says_nothing_unless_asked(loss):
    output, target = torch.randn(1, 1, 3, 4), torch.zeros(1, 3, 4, dtype=torch.uint8)
    value, gradient = with_gradient(loss, output, target)
    assert value == 0
    assert (gradient == 0).all()
    counted, down = with_gradient(type(loss)(count_absent=True), output, target)
    assert counted > 0
    assert (down >= 0).all()
    assert (down > 0).any()


# Class weights


def test_labels_are_counted_over_the_set_without_void():
    maps = [labelled(6, 7) for _ in range(5)]
    maps[0][maps[0] == 1] = 255
    counts, image_counts = count_labels([*maps, torch.full((2, 2), -1), torch.tensor([[9]])], classes=3)
    assert counts == [int(sum((labels == c).sum() for labels in maps)) for c in range(3)]
    assert image_counts == [int(sum((labels != 255).sum() for labels in maps if (labels == c).any())) for c in range(3)]


def test_median_frequency_weights_are_the_median_over_the_frequency():
    counts, image_counts = [500, 100, 30, 0, 7], [1000, 800, 1000, 0, 70]
    frequency = np.array([0.5, 0.125, 0.03, 0.1])
    expected = np.insert(np.median(frequency) / frequency, 3, 0)
    assert median_frequency_weights(counts, image_counts) == pytest.approx(expected.tolist())


def test_median_frequency_weights_of_camvid_are_about_segnets(real_data):
    """Published for another version of the labels: all but the sign's 9.6446 agree to about a fifth."""
    published = [0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614]
    dataset = CamVid(real_data / "camvid", "train")
    weights = median_frequency_weights(
        *count_labels((torch.as_tensor(dataset[i]["segmentation"]) for i in range(len(dataset))), 11)
    )
    ratios = [ours / theirs for ours, theirs in zip(weights, published, strict=True)]
    assert all(0.85 < ratio < 1.21 for ratio in np.delete(ratios, 6))


def test_inverse_frequency_weights_are_scikit_learns_balanced_ones():
    labels = np.repeat([0, 1, 2], [50, 8, 30])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert inverse_frequency_weights([50, 8, 30]) == pytest.approx(expected.tolist())


def test_frequencies_without_any_class_are_refused():
    with pytest.raises(ConfigurationError, match="none of the 2 classes occurs"):
        median_frequency_weights([0, 0], [0, 0])
    with pytest.raises(ConfigurationError, match="none of the 2 classes occurs"):
        inverse_frequency_weights([0, 0])
    with pytest.raises(ConfigurationError, match="pixels of each class, and those of all images"):
        median_frequency_weights([5, 5], [10])


# In the task


@pytest.mark.parametrize(
    "loss",
    [FocalLoss(), TopKCrossEntropyLoss(pixels=5), DiceLoss(), LovaszSoftmaxLoss(), SumLoss([CrossEntropyLoss()])],
)
def test_losses_that_cannot_be_fused_see_the_upsampled_planes(loss):
    task = Segmentation(3, loss=loss)
    planes, labels = torch.randn(2, 3, 4, 5), labelled(2, 16, 20)
    assert not task.fused
    batch = {"image": torch.zeros(2, 3, 16, 20), "segmentation": labels}
    logits = F.interpolate(planes, size=(16, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(task.loss_from_planes(planes, batch), loss(logits, labels))


@pytest.mark.parametrize("mode", ["binary", "multilabel"])
@pytest.mark.parametrize("loss", [DiceLoss(), LovaszSoftmaxLoss(), BinaryFocalLoss()])
def test_overlap_and_focal_losses_train_every_mode(mode, loss):
    task = Segmentation(2, mode=mode, loss=loss)
    labels = torch.randint(0, 2, (2, 16, 20) if mode == "binary" else (2, 2, 16, 20), dtype=torch.uint8)
    planes = torch.zeros(2, task.out_channels, 4, 5, requires_grad=True)
    optimizer = torch.optim.Adam([planes], lr=0.5)
    losses = []
    for _ in range(20):
        losses.append(task.loss_from_planes(planes, {"image": torch.zeros(2, 3, 16, 20), "segmentation": labels}))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("loss", "mode"),
    [
        (CrossEntropyLoss([1.0, 2.0]), "multiclass"),
        (SumLoss([DiceLoss(class_weights=[1.0] * 4)]), "multiclass"),
        (BinaryCrossEntropyLoss([1.0]), "multilabel"),
    ],
)
def test_weights_of_a_loss_that_are_not_one_a_class_are_refused_when_the_task_is_built(loss, mode):
    with pytest.raises(ConfigurationError, match=r"has \d entries for 3 planes"):
        Segmentation(3, loss=loss, mode=mode)


def test_a_wrong_label_in_a_sum_of_losses_names_the_images():
    task = Segmentation(3, loss=SumLoss([FocalLoss(), DiceLoss()]))
    batch = {
        "image": torch.zeros(1, 3, 4, 4),
        "segmentation": torch.full((1, 4, 4), 7, dtype=torch.uint8),
        "name": ["street_7"],
    }
    with pytest.raises(DataError, match=r"no class: 7.*street_7"):
        task.loss_from_planes(torch.zeros(1, 3, 4, 4), batch)
