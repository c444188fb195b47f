"""What every loss promises: missing pixels do nothing, gradients are right, float32 under autocast, clear refusals."""

import math

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn import functional as F

from densepred import losses as face
from densepred.errors import ConfigurationError, DataError
from densepred.losses import (
    AbsoluteErrorLoss,
    AngularLoss,
    BerHuLoss,
    BinaryCrossEntropyLoss,
    BinaryFocalLoss,
    CodebookLoss,
    CosineLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    L1Loss,
    L2Loss,
    Loss,
    LovaszSoftmaxLoss,
    NormalsL2Loss,
    OrdinalLoss,
    ScaleInvariantGradientLoss,
    ScaleInvariantLoss,
    SILogLoss,
    SquaredErrorLoss,
    SumLoss,
    TopKCrossEntropyLoss,
    VonMisesFisherLoss,
)
from densepred.losses.fused import upsampled_cross_entropy
from densepred.losses.segmentation import known_labels
from densepred.recipe import recipe
from densepred.tasks import Depth, Normals, Regression, Segmentation


def with_gradient(loss, output, *arguments):
    output = output.detach().clone().requires_grad_()
    value = loss(output, *arguments)
    value.backward()
    return value.detach(), output.grad


def unit(*size):
    return F.normalize(torch.randn(size), dim=1)


# one loss a row: an output and a target whose first column is missing, each with the values that may stand there
def labelled(missing, classes=3):
    return torch.randint(0, classes, (2, 4, 5), dtype=torch.uint8 if missing == 255 else torch.int32)


def multiclass(loss):
    return [(loss, torch.randn(2, 3, 4, 5), labelled(missing), missing) for missing in (255, -1)]


def binary(loss):
    return [(loss, torch.randn(2, 1, 4, 5), labelled(255, classes=2), 255)]


def multilabel(loss):
    answers = torch.randint(0, 2, (2, 3, 4, 5), dtype=torch.uint8)
    return [(loss, torch.randn(2, 3, 4, 5), answers, 255)]


def depth(loss, planes=1):
    metres = torch.rand(2, planes, 4, 5) + 0.1 if planes == 1 else torch.randn(2, planes, 4, 5)
    target = 5 * torch.rand(2, 1, 4, 5) + 0.5
    return [(loss, metres, target, missing) for missing in (0.0, math.nan, math.inf)]


def normals(loss, length=0.9):
    return [(loss, length * unit(2, 3, 4, 5), unit(2, 3, 4, 5), missing) for missing in (0.0, math.nan, math.inf)]


def sure_normals(loss):
    output = torch.cat([unit(2, 3, 4, 5), 3 * torch.rand(2, 1, 4, 5) + 0.5], dim=1)
    return [(loss, output, unit(2, 3, 4, 5), missing) for missing in (0.0, math.nan, math.inf)]


def codewords(loss):
    return [(loss, torch.randn(2, 12, 4, 5), unit(2, 3, 4, 5), missing) for missing in (0.0, math.nan, math.inf)]


def regression(loss):
    return [(loss, torch.randn(2, 2, 4, 5), torch.randn(2, 2, 4, 5), missing) for missing in (math.nan, -math.inf)]


def cases():
    weights = [1.0, 2.0, 0.5]
    rows = {
        "cross entropy": multiclass(CrossEntropyLoss()),
        "cross entropy, weighted": multiclass(CrossEntropyLoss(weights)),
        "cross entropy, smoothed": multiclass(CrossEntropyLoss(weights, label_smoothing=0.1)),
        "focal": multiclass(FocalLoss()),
        "focal, weighted": multiclass(FocalLoss(0.5, weights)),
        "top pixels": multiclass(TopKCrossEntropyLoss(pixels=9)),
        "top pixels of the batch": multiclass(TopKCrossEntropyLoss(pixels=9, per_image=False)),
        "top share": multiclass(TopKCrossEntropyLoss(share=0.4)),
        "ohem": multiclass(TopKCrossEntropyLoss(pixels=4, threshold=0.2)),
        "dice": multiclass(DiceLoss()),
        "dice, each image": multiclass(DiceLoss(0.0, per_image=True, count_absent=True, class_weights=weights)),
        "dice, binary": binary(DiceLoss()),
        "dice, multilabel": multilabel(DiceLoss()),
        "lovasz": multiclass(LovaszSoftmaxLoss()),
        "lovasz, each image": multiclass(LovaszSoftmaxLoss(per_image=True, count_absent=True, class_weights=weights)),
        "lovasz, binary": binary(LovaszSoftmaxLoss()),
        "lovasz, multilabel": multilabel(LovaszSoftmaxLoss()),
        "bce": multilabel(BinaryCrossEntropyLoss()),
        "bce, weighted": multilabel(BinaryCrossEntropyLoss(weights)),
        "binary focal": multilabel(BinaryFocalLoss(alpha=0.25)),
        "binary focal, one plane": binary(BinaryFocalLoss(1.5)),
        "sum": multiclass(SumLoss([CrossEntropyLoss(), DiceLoss()], [1.0, 0.5])),
        "l1": depth(L1Loss()),
        "l1 log": depth(L1Loss(log=True)),
        "l2": depth(L2Loss()),
        "l2 log": depth(L2Loss(log=True)),
        "berhu": depth(BerHuLoss()),
        "berhu log": depth(BerHuLoss(log=True)),
        "silog": depth(SILogLoss()),
        "scale-invariant": depth(ScaleInvariantLoss()),
        "scale-invariant gradient": depth(ScaleInvariantGradientLoss()),
        "ordinal": depth(OrdinalLoss(0.5, 5.0), planes=6),
        "squared error": regression(SquaredErrorLoss()),
        "absolute error": regression(AbsoluteErrorLoss()),
        "cosine": normals(CosineLoss()),
        "cosine, long": normals(CosineLoss(), length=1.5),
        "angular": normals(AngularLoss(), length=1.5),
        "normals l2": normals(NormalsL2Loss()),
        "codebook": codewords(CodebookLoss(12)),
        "codebook, hard": codewords(CodebookLoss(12, soft=False)),
        "von mises-fisher": sure_normals(VonMisesFisherLoss(angular=False)),
        "angular von mises-fisher": sure_normals(VonMisesFisherLoss()),
    }
    for name, versions in rows.items():
        for loss, output, target, missing in versions:
            target[..., 0] = missing
            yield pytest.param(loss, output, target, missing, id=f"{name}, {missing}")


torch.manual_seed(0)
CASES = list(cases())
ONE_A_LOSS = list({case.id.rsplit(",", 1)[0]: case for case in CASES}.values())
ONE_A_CLASS = list({type(case.values[0]): case for case in CASES}.values())
LABELS = [case for case in ONE_A_LOSS if not case.values[2].is_floating_point()]
SELECTIVE = (TopKCrossEntropyLoss, LovaszSoftmaxLoss)
"""Losses that give some known pixels no gradient."""
ARGUMENTS = ("loss", "output", "target", "missing")
every_case = pytest.mark.parametrize(ARGUMENTS, CASES)
every_loss = pytest.mark.parametrize(ARGUMENTS, ONE_A_LOSS)
every_loss_of_labels = pytest.mark.parametrize(ARGUMENTS, LABELS)


def test_every_public_loss_is_tested_here():
    public = {name for name in face.__all__ if name.endswith("Loss") and name != "Loss"}
    assert {type(case.values[0]).__name__ for case in CASES} == public


@every_case
def test_missing_pixels_have_exactly_zero_gradient_and_known_ones_do_not(loss, output, target, missing):
    value, gradient = with_gradient(loss, output, target)
    moved = (gradient[..., 1:] != 0).any(1)
    assert value.isfinite()
    assert value != 0
    assert (gradient[..., 0] == 0).all()
    assert moved.any() if isinstance(loss, SELECTIVE) else moved.all()


@every_case
def test_missing_pixels_do_not_change_the_loss_whatever_is_predicted_there(loss, output, target, missing):
    value, gradient = with_gradient(loss, output, target)
    wild = output.clone()
    # softmax of NaN is NaN in torch's own cross-entropy, ignored or not
    wild[..., 0] = 1e30 if isinstance(loss, CrossEntropyLoss | SumLoss) else math.nan
    cropped, cropped_gradient = with_gradient(loss, output[..., 1:], target[..., 1:])
    wild_value, wild_gradient = with_gradient(loss, wild, target)
    torch.testing.assert_close(wild_value, value)
    torch.testing.assert_close(wild_gradient, gradient)
    torch.testing.assert_close(cropped, value)
    torch.testing.assert_close(cropped_gradient, gradient[..., 1:])


@every_case
def test_without_any_valid_pixel_loss_and_gradient_are_exactly_zero(loss, output, target, missing):
    value, gradient = with_gradient(loss, output, torch.full_like(target, missing))
    assert value == 0
    assert (gradient == 0).all()


@every_loss
def test_losses_are_float32_under_autocast(loss, output, target, missing):
    exact = loss(output.bfloat16().float(), target)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = with_gradient(loss, output.bfloat16(), target)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value, exact)


# berHu's threshold moves with the largest error, which by definition is not differentiated through
@pytest.mark.parametrize(ARGUMENTS, [case for case in ONE_A_LOSS if not isinstance(case.values[0], BerHuLoss)])
def test_gradients_agree_with_finite_differences(loss, output, target, missing):
    target = target.double() if target.is_floating_point() else target
    assert torch.autograd.gradcheck(lambda x: loss.double()(x, target), output.double().requires_grad_())
    loss.float()


@every_loss
def test_gradients_are_finite_at_extreme_outputs(loss, output, target, missing):
    depths = isinstance(loss, L1Loss | L2Loss | BerHuLoss | SILogLoss | ScaleInvariantLoss)
    for size in (0.0, 1e-30, 1e-8, 1e4):
        value, gradient = with_gradient(loss, size * (output.abs() if depths else output), target)
        assert value.isfinite()
        assert gradient.isfinite().all()


@every_loss
def test_outputs_of_another_size_are_refused_rather_than_broadcast(loss, output, target, missing):
    with pytest.raises(ConfigurationError, match=r"\(2, \d+, 4, 5\)"):
        loss(output, target[:1])


@pytest.mark.parametrize(ARGUMENTS, ONE_A_CLASS)
def test_losses_compile_without_a_graph_break(loss, output, target, missing):
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(with_gradient(compiled, output, target), with_gradient(loss, output, target))


@every_loss
def test_losses_never_read_the_device(loss, output, target, missing):
    """Tensors without data stand for a device: whoever asks for a value of theirs gets an error."""
    rebuilt = type(loss)(**loss.init_args).to("meta")
    assert rebuilt(output.to("meta"), target.to("meta")).shape == ()


@every_loss
def test_losses_are_built_from_yaml_and_from_their_recipe(loss, output, target, missing):
    plain = recipe(loss)
    parser = ArgumentParser()
    parser.add_subclass_arguments(Loss, "loss")
    short = {**plain, "class_path": plain["class_path"].split(".")[-1]}
    built = parser.instantiate(parser.parse_object({"loss": short})).loss
    assert type(built) is type(loss)
    torch.testing.assert_close(built(output, target), loss(output, target))
    assert not list(loss.parameters())
    torch.testing.assert_close(built.state_dict(), loss.state_dict())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@every_loss_of_labels
def test_a_label_that_is_no_class_is_named(loss, output, target, missing, dtype):
    wrong = torch.zeros_like(target, dtype=dtype)
    wrong[0, ..., 0, 0] = 77
    with pytest.raises(DataError, match=r"\d pixels .* no class: 77. Expected 0 .. \d for \d classes"):
        loss(output, wrong)
    if type(loss) is CrossEntropyLoss:
        with pytest.raises(DataError, match="no class: 77"):
            upsampled_cross_entropy(output, wrong)


@every_loss_of_labels
def test_where_looking_would_stall_a_wrong_label_makes_the_loss_nan_and_trains_nothing(
    monkeypatch, loss, output, target, missing
):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    wrong = target.clone()
    wrong[..., 0] = 77
    value, gradient = with_gradient(loss, output, wrong)
    assert value.isnan()
    torch.testing.assert_close(gradient, with_gradient(loss, output, target)[1])


def test_where_looking_would_stall_a_wrong_label_counts_as_missing_and_raises_an_alarm(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    known, alarm = known_labels(torch.tensor([[[0, 77, 1]]], dtype=torch.uint8), classes=2)
    assert known.tolist() == [[[True, False, True]]]
    assert alarm.isnan()
    value, gradient = with_gradient(
        upsampled_cross_entropy, torch.randn(1, 2, 1, 3), torch.tensor([[[0, 77, 1]]], dtype=torch.uint8)
    )
    assert value.isnan()
    assert ((gradient != 0).any(1) == known).all()


OVERLAPS = [DiceLoss(), LovaszSoftmaxLoss()]
ANSWERS = [BinaryCrossEntropyLoss(), BinaryFocalLoss(), *OVERLAPS]
# a task, its batch's target, and the losses that fit it
TASKS = {
    "multiclass": (
        lambda loss: Segmentation(3, loss=loss),
        labelled(255),
        [CrossEntropyLoss(), FocalLoss(), TopKCrossEntropyLoss(pixels=9), *OVERLAPS],
    ),
    "binary": (lambda loss: Segmentation(2, loss=loss, mode="binary"), labelled(255, classes=2), ANSWERS),
    "multilabel": (
        lambda loss: Segmentation(3, loss=loss, mode="multilabel"),
        torch.randint(0, 2, (2, 3, 4, 5), dtype=torch.uint8),
        ANSWERS,
    ),
    "depth": (
        lambda loss: Depth(loss=loss),
        1 + torch.rand(2, 1, 4, 5),
        [L1Loss(), L2Loss(), BerHuLoss(), SILogLoss(), ScaleInvariantLoss(), ScaleInvariantGradientLoss()],
    ),
    "depth in bins": (lambda loss: Depth(loss=loss, bins=6), 1 + torch.rand(2, 1, 4, 5), [OrdinalLoss()]),
    "normals": (
        lambda loss: Normals(loss=loss),
        unit(2, 3, 4, 5),
        [CosineLoss(), AngularLoss(), NormalsL2Loss()],
    ),
    "sure normals": (
        lambda loss: Normals(loss=loss, uncertainty=True),
        unit(2, 3, 4, 5),
        [VonMisesFisherLoss()],
    ),
    "regression": (
        lambda loss: Regression(2, loss=loss),
        torch.randn(2, 2, 4, 5),
        [AbsoluteErrorLoss(), SquaredErrorLoss()],
    ),
}
FITTING = [loss for _, _, fitting in TASKS.values() for loss in fitting]
EVERY_LOSS = {type(loss): loss for loss in (*FITTING, CodebookLoss(12))}  # which only its own task makes


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_with_every_loss_that_fits_it_and_refuses_all_others_when_it_is_built(name):
    build, target, fitting = TASKS[name]
    assert {*EVERY_LOSS, SumLoss} == {type(case.values[0]) for case in CASES}
    for loss in fitting:
        task = build(loss)
        batch = {"image": torch.zeros(2, 3, 4, 5), task.name: target}
        value, gradient = with_gradient(task.loss_from_planes, torch.randn(2, task.out_channels, 4, 5), batch)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient.any()
    for kind, loss in EVERY_LOSS.items():
        if kind not in map(type, fitting):
            for wrong in (loss, SumLoss([loss])):
                with pytest.raises(ConfigurationError):
                    build(wrong)


def test_the_refusal_of_a_loss_says_what_fits():
    with pytest.raises(ConfigurationError, match=r"Normals: L2Loss compares depth targets; .*'normals' are of kind"):
        Normals(loss=L2Loss())
    with pytest.raises(ConfigurationError, match=r"BinaryFocalLoss is for binary or multilabel mode; .* is multiclass"):
        Segmentation(3, loss=SumLoss([CrossEntropyLoss(), BinaryFocalLoss()]))


def test_a_sum_of_losses_is_their_weighted_sum_with_its_gradient():
    output, target = torch.rand(2, 1, 4, 5) + 0.5, torch.rand(2, 1, 4, 5)
    parts = [with_gradient(loss, output, target) for loss in (L1Loss(), L2Loss(log=True))]
    value, gradient = with_gradient(SumLoss([L1Loss(), L2Loss(log=True)], [0.5, 3.0]), output, target)
    torch.testing.assert_close(value, 0.5 * parts[0][0] + 3 * parts[1][0])
    torch.testing.assert_close(gradient, 0.5 * parts[0][1] + 3 * parts[1][1])
    torch.testing.assert_close(SumLoss([L1Loss(), L2Loss(log=True)])(output, target), parts[0][0] + parts[1][0])


def test_the_parts_of_a_sum_go_by_short_names_in_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Loss, "loss")
    parts = [{"class_path": "CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}}, {"class_path": "DiceLoss"}]
    config = {"class_path": "SumLoss", "init_args": {"losses": parts, "weights": [1.0, 0.5]}}
    built = parser.instantiate(parser.parse_object({"loss": config})).loss
    assert [type(part) for part in built.losses] == [CrossEntropyLoss, DiceLoss]
    assert built.losses[0].label_smoothing == 0.1


def test_the_parts_of_a_sum_follow_it_to_its_device():
    loss = SumLoss([CrossEntropyLoss([1.0, 2.0]), DiceLoss()])
    assert isinstance(loss.losses, nn.ModuleList)
    assert loss.to("meta").losses[0].class_weights.device.type == "meta"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CrossEntropyLoss([1.0, -1.0]), "class_weights must be finite and at least 0"),
        (lambda: CrossEntropyLoss(label_smoothing=1.5), "label_smoothing is a share, from 0 to 1; got 1.5"),
        (lambda: FocalLoss(-1.0), "gamma must be at least 0; got -1"),
        (lambda: FocalLoss(class_weights=[math.nan]), "class_weights must be finite"),
        (lambda: BinaryFocalLoss(alpha=2.0), "alpha is the share of yes, from 0 to 1; got 2"),
        (lambda: DiceLoss(smooth=-1.0), "smooth is a number of pixels, at least 0; got -1"),
        (lambda: TopKCrossEntropyLoss(), "either pixels or share; got pixels=None and share=None"),
        (lambda: TopKCrossEntropyLoss(5, 0.5), "either pixels or share; got pixels=5 and share=0.5"),
        (lambda: TopKCrossEntropyLoss(0), "pixels must be at least 1; got 0"),
        (lambda: TopKCrossEntropyLoss(share=0.0), "share must be above 0 and at most 1; got 0"),
        (lambda: TopKCrossEntropyLoss(5, threshold=0.0), "threshold is a probability"),
        (lambda: BerHuLoss(share=0.0), "share must be above 0 and at most 1; got 0"),
        (lambda: SILogLoss(balance=1.1), "SILogLoss: balance must be from 0 to 1; got 1.1"),
        (lambda: ScaleInvariantGradientLoss(-1.0), "ScaleInvariantGradientLoss: balance must be from 0 to 1"),
        (lambda: OrdinalLoss(5.0, 1.0), "expected 0 < min_depth < max_depth"),
        (lambda: SumLoss([]), "at least one loss"),
        (lambda: SumLoss([L1Loss(), L2Loss()], [1.0]), r"got 2 losses \(L1Loss, L2Loss\) and 1 weights"),
        (lambda: SumLoss([L1Loss()], [-1.0]), "weights must be finite and at least 0"),
    ],
)
def test_options_out_of_range_are_refused_with_the_range(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()
