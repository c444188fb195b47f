"""Losses: their values and gradients, against torch's own and closed forms, and what missing pixels do (nothing)."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from densepred.errors import ConfigurationError, DataError
from densepred.losses import BinaryCrossEntropyLoss, CosineLoss, CrossEntropyLoss, L2Loss, SquaredErrorLoss
from densepred.losses import bands as bands_file
from densepred.losses.bands import interpolation_matrix, upsampled_labels
from densepred.losses.fused import upsampled_cross_entropy
from densepred.losses.segmentation import cross_entropy, known_labels


def with_gradient(loss, output, *arguments):
    output = output.detach().clone().requires_grad_()
    value = loss(output, *arguments)
    value.backward()
    return value.detach(), output.grad


def unfused(planes, labels, class_weights=None):
    logits = F.interpolate(planes, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels.long(), class_weights, ignore_index=255)


def unit(*size):
    return F.normalize(torch.randn(size), dim=1)


# one loss a row: the loss, an output, a target whose first column is missing, and its missing value
def labelled(missing):
    labels = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8 if missing == 255 else torch.int32)
    labels[:, :, 0] = missing
    return labels


def cases():
    depth = torch.rand(2, 1, 4, 5) + 0.5
    flow = torch.randn(2, 2, 4, 5)
    yes = torch.randint(0, 2, (2, 3, 4, 5), dtype=torch.uint8)
    normals = unit(2, 3, 4, 5)
    for name, loss, output, target, missing in (
        ("cross entropy", CrossEntropyLoss(), torch.randn(2, 3, 4, 5), labelled(255), 255),
        ("cross entropy, signed", CrossEntropyLoss(), torch.randn(2, 3, 4, 5), labelled(-1), -1),
        ("cross entropy, weighted", CrossEntropyLoss([1.0, 2.0, 0.5]), torch.randn(2, 3, 4, 5), labelled(255), 255),
        ("bce", BinaryCrossEntropyLoss(), torch.randn(2, 3, 4, 5), yes, 255),
        ("bce, weighted", BinaryCrossEntropyLoss([1.0, 2.0, 0.5]), torch.randn(2, 3, 4, 5), yes, 255),
        ("l2", L2Loss(), torch.rand(2, 1, 4, 5) + 0.1, depth, 0),
        ("l2 nan", L2Loss(), torch.rand(2, 1, 4, 5) + 0.1, depth, math.nan),
        ("l2 inf", L2Loss(), torch.rand(2, 1, 4, 5) + 0.1, depth, math.inf),
        ("l2 log", L2Loss(log=True), torch.rand(2, 1, 4, 5) + 0.1, depth, 0),
        ("l2 log nan", L2Loss(log=True), torch.rand(2, 1, 4, 5) + 0.1, depth, math.nan),
        ("squared error", SquaredErrorLoss(), torch.randn(2, 2, 4, 5), flow, math.nan),
        ("squared error inf", SquaredErrorLoss(), torch.randn(2, 2, 4, 5), flow, -math.inf),
        ("cosine", CosineLoss(), 1.5 * unit(2, 3, 4, 5), normals, 0),
        ("cosine nan", CosineLoss(), 0.5 * unit(2, 3, 4, 5), normals, math.nan),
        ("cosine inf", CosineLoss(), 0.9 * unit(2, 3, 4, 5), normals, math.inf),
    ):
        target = target.clone()
        target[..., 0] = missing
        yield pytest.param(loss, output, target, missing, id=name)


torch.manual_seed(0)
CASES = list(cases())
every_loss = pytest.mark.parametrize(("loss", "output", "target", "missing"), CASES)


@every_loss
def test_missing_pixels_have_exactly_zero_gradient_and_known_ones_do_not(loss, output, target, missing):
    value, gradient = with_gradient(loss, output, target)
    assert value.isfinite()
    assert value > 0
    assert (gradient[..., 0] == 0).all()
    assert (gradient[..., 1:] != 0).any(1).all()


@every_loss
def test_missing_pixels_do_not_change_the_loss_whatever_is_predicted_there(loss, output, target, missing):
    value, gradient = with_gradient(loss, output, target)
    wild = output.clone()
    # softmax of NaN is NaN in torch's own cross-entropy, ignored or not
    wild[..., 0] = 1e30 if isinstance(loss, CrossEntropyLoss) else math.nan
    cropped, cropped_gradient = with_gradient(loss, output[..., 1:], target[..., 1:])
    wild_value, wild_gradient = with_gradient(loss, wild, target)
    torch.testing.assert_close(wild_value, value)
    torch.testing.assert_close(wild_gradient, gradient)
    torch.testing.assert_close(cropped, value)
    torch.testing.assert_close(cropped_gradient, gradient[..., 1:])


@every_loss
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


@every_loss
def test_gradients_agree_with_finite_differences(loss, output, target, missing):
    target = target.double() if target.is_floating_point() else target
    assert torch.autograd.gradcheck(lambda x: loss.double()(x, target), output.double().requires_grad_())
    loss.float()


@every_loss
def test_outputs_of_another_size_are_refused_rather_than_broadcast(loss, output, target, missing):
    with pytest.raises(ConfigurationError, match=r"\(2, \d, 4, 5\)"):
        loss(output, target[:1])


def test_cross_entropy_is_torchs_with_class_weights_and_void():
    output, labels = torch.randn(2, 3, 4, 5), labelled(255)
    weights = torch.tensor([0.2, 1.0, 3.0])
    for given in (None, weights):
        expected = with_gradient(lambda x: F.cross_entropy(x, labels.long(), given, ignore_index=255), output)  # noqa: B023
        got = with_gradient(CrossEntropyLoss(None if given is None else given.tolist()), output, labels)
        torch.testing.assert_close(got, expected)


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


def test_binary_cross_entropy_takes_plain_label_maps_for_one_plane():
    output, target = torch.randn(2, 1, 4, 5), torch.randint(0, 2, (2, 4, 5))
    expected = F.binary_cross_entropy_with_logits(output[:, 0], target.float())
    torch.testing.assert_close(BinaryCrossEntropyLoss()(output, target), expected)


def test_l2_compares_metres_or_their_logarithms():
    output, target = torch.tensor([1.0, 8.0, 7.0]).view(1, 1, 1, 3), torch.tensor([2.0, 4.0, 0.0]).view(1, 1, 1, 3)
    assert L2Loss()(output, target).item() == pytest.approx((1**2 + 4**2) / 2)
    assert L2Loss(log=True)(output, target).item() == pytest.approx(math.log(2) ** 2)


def test_squared_error_counts_zero_and_negative_numbers():
    output, target = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, -2.0, math.nan])
    assert SquaredErrorLoss()(output, target).item() == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
def test_cosine_loss_is_one_minus_the_cosine_of_the_angle(degrees):
    angle = math.radians(degrees)
    output = torch.tensor([math.sin(angle), 0.0, -math.cos(angle)]).view(1, 3, 1, 1)
    target = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)
    for length in (1, 5):
        assert CosineLoss()(length * output, target).item() == pytest.approx(1 - math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-8, 1e-3, 1.0, 1e3])
def test_the_cosine_loss_has_a_gradient_of_at_most_one_at_any_length(length):
    target = unit(1, 3, 1, 1)
    _, gradient = with_gradient(CosineLoss(), length * unit(1, 3, 1, 1), target)
    assert gradient.isfinite().all()
    assert gradient.norm() <= 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("loss", [CrossEntropyLoss(), upsampled_cross_entropy])
def test_a_label_that_is_no_class_is_named(loss, dtype):
    labels = torch.zeros(1, 2, 2, dtype=dtype)
    labels[0, 0, 0] = 77
    with pytest.raises(DataError, match=r"1 pixels .* no class: 77. Expected 0 .. 20 for 21 classes"):
        loss(torch.zeros(1, 21, 2, 2), labels)


def test_where_looking_would_stall_a_wrong_label_makes_the_loss_nan_and_trains_nothing(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    labels = torch.tensor([[[0, 77, 1]]], dtype=torch.uint8)
    known, alarm = known_labels(labels, classes=2)
    assert known.tolist() == [[[True, False, True]]]
    assert alarm.isnan()
    for loss in (CrossEntropyLoss(), upsampled_cross_entropy):
        value, gradient = with_gradient(loss, torch.randn(1, 2, 1, 3), labels)
        assert value.isnan()
        assert gradient.isfinite().all()
        assert (gradient[..., 1] == 0).all()
        assert (gradient[..., 0] != 0).all()


def test_255_is_a_class_where_there_are_that_many():
    output = torch.randn(1, 300, 1, 2)
    labels = torch.tensor([[[255, -1]]], dtype=torch.int32)
    expected = F.cross_entropy(output[..., :1], labels[..., :1].long())
    torch.testing.assert_close(CrossEntropyLoss()(output, labels), expected)
    torch.testing.assert_close(upsampled_cross_entropy(output, labels), expected)


def test_negative_weights_are_refused():
    with pytest.raises(ConfigurationError, match="class_weights must be finite and at least 0"):
        CrossEntropyLoss([1.0, -1.0])


# Upsampling and cross-entropy in one

SIZES = [  # planes (B, C, h, w) and labels (H, W)
    ((2, 5, 4, 6), (32, 48)),
    ((2, 5, 5, 7), (33, 47)),
    ((1, 2, 1, 1), (9, 13)),
    ((3, 21, 9, 4), (9, 31)),  # one side as it is
    ((2, 5, 12, 17), (12, 17)),  # nothing to upsample
    ((1, 3, 20, 30), (7, 11)),  # smaller than the planes
    ((2, 4, 2, 40), (65, 320)),  # several blocks of columns
]


@pytest.fixture(params=[None, 200, 2000])
def small_bands(request, monkeypatch):
    """Bands of the usual size, and of a few rows or less, so that their seams are met."""
    if request.param:
        monkeypatch.setattr(bands_file, "_CACHE_ELEMENTS", request.param)


@pytest.mark.parametrize(("size", "image"), SIZES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.usefixtures("small_bands")
def test_the_fused_loss_is_interpolate_and_cross_entropy(size, image, weighted):
    labels = torch.randint(0, size[1], (size[0], *image), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 0.2] = 255
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        planes = torch.randn(size, dtype=dtype) * 4
        weights = torch.rand(size[1], dtype=dtype) + 0.1 if weighted else None
        expected, expected_gradient = with_gradient(unfused, planes, labels, weights)
        value, gradient = with_gradient(upsampled_cross_entropy, planes, labels, weights)
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
        scale = expected_gradient.abs().max()
        assert (gradient - expected_gradient).abs().max() <= 4 * tolerance * scale


def test_the_fused_gradient_agrees_with_finite_differences():
    labels = torch.randint(0, 3, (2, 9, 7))
    labels[0, :2] = -1
    planes = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.5, 1.0, 2.0])
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy(x, labels, weights), planes)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.3, 2.0, 1.0])])
def test_the_fused_loss_of_an_unlabelled_batch_is_zero_with_zero_gradient(weights):
    labels = torch.full((2, 16, 16), 255, dtype=torch.uint8)
    value, gradient = with_gradient(upsampled_cross_entropy, torch.randn(2, 3, 4, 4), labels, weights)
    assert value == 0
    assert (gradient == 0).all()


def test_an_unlabelled_image_of_a_batch_has_exactly_zero_gradient_in_the_fused_loss():
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    labels[0] = 255
    _, gradient = with_gradient(upsampled_cross_entropy, torch.randn(2, 3, 4, 4) * 1e4, labels)
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).any()


def test_the_fused_loss_stays_finite_at_huge_logits():
    planes = torch.randn(1, 3, 4, 4) * 1e8
    labels = torch.randint(0, 3, (1, 16, 16))
    value, gradient = with_gradient(upsampled_cross_entropy, planes, labels)
    torch.testing.assert_close(value, unfused(planes, labels))
    assert gradient.isfinite().all()


def test_the_fused_loss_is_float32_under_autocast_and_hands_back_the_planes_dtype():
    planes, labels = torch.randn(1, 3, 4, 4).bfloat16(), torch.randint(0, 3, (1, 16, 16))
    expected, expected_gradient = with_gradient(unfused, planes.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = with_gradient(upsampled_cross_entropy, planes, labels)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient.bfloat16())


def test_the_fused_gradient_is_scaled_by_what_follows():
    planes, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 16, 16))
    _, once = with_gradient(upsampled_cross_entropy, planes, labels)
    _, scaled = with_gradient(lambda x: 65536 * upsampled_cross_entropy(x, labels), planes)
    torch.testing.assert_close(scaled, 65536 * once)


def test_the_fused_loss_never_reads_the_device():
    """Tensors without data stand for a device: whoever asks for a value of theirs gets an error."""
    planes = torch.randn(2, 3, 4, 4, device="meta", requires_grad=True)
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8, device="meta")
    for loss in (upsampled_cross_entropy, CrossEntropyLoss([1.0, 2.0, 3.0]).to("meta")):
        loss(planes if loss is upsampled_cross_entropy else torch.randn(2, 3, 16, 16, device="meta"), labels)
    upsampled_cross_entropy(planes, labels).backward()
    assert upsampled_labels(planes, (16, 16), torch.uint8).shape == (2, 16, 16)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor made under it."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_planes_of_full_resolution_never_exist():
    planes, labels = torch.randn(2, 21, 32, 32, requires_grad=True), torch.zeros(2, 256, 256, dtype=torch.uint8)
    full = 2 * 21 * 256 * 256
    with LargestTensor() as plain:
        unfused(planes, labels).backward()
    with LargestTensor() as fused:
        upsampled_cross_entropy(planes, labels).backward()
        upsampled_labels(planes.detach(), (256, 256), torch.uint8)
    assert plain.largest == full
    assert fused.largest <= full / 8


def test_the_fused_loss_cannot_be_differentiated_twice_and_says_so():
    planes = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = upsampled_cross_entropy(planes, torch.zeros(1, 16, 16, dtype=torch.uint8))
    (gradient,) = torch.autograd.grad(loss.square(), planes, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_labels_of_another_batch_are_refused():
    with pytest.raises(ConfigurationError, match=r"want labels of size \(2, H, W\); got \(1, 8, 8\)"):
        upsampled_cross_entropy(torch.zeros(2, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(("cells", "pixels"), [(1, 5), (4, 32), (7, 47), (47, 7), (100, 801)])
def test_interpolation_matrices_are_torchs_bilinear_interpolation(cells, pixels):
    matrix = interpolation_matrix(cells, pixels, torch.float64, torch.device("cpu"))
    impulses = torch.eye(cells, dtype=torch.float64)[None, :, None]
    expected = F.interpolate(impulses, size=(1, pixels), mode="bilinear", align_corners=False)[0, :, 0].T
    torch.testing.assert_close(matrix, expected)


@pytest.mark.parametrize(("size", "image"), SIZES)
@pytest.mark.usefixtures("small_bands")
def test_labels_by_bands_are_those_of_the_upsampled_planes(size, image):
    planes = torch.randn(size, dtype=torch.float64)
    expected = F.interpolate(planes, size=image, mode="bilinear", align_corners=False).argmax(1)
    labels = upsampled_labels(planes, image, torch.uint8)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), expected)


def test_labels_by_bands_are_as_exact_under_autocast():
    planes = torch.randn(1, 8, 16, 16)
    expected = upsampled_labels(planes, (128, 128), torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsampled_labels(planes, (128, 128), torch.uint8), expected)
