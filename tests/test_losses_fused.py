"""Upsampling and cross-entropy in one, and labels by bands, against interpolation and torch's own."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from densepred.errors import ConfigurationError
from densepred.losses import CrossEntropyLoss
from densepred.losses import bands as bands_file
from densepred.losses.bands import interpolation_matrix, upsampled_labels
from densepred.losses.fused import upsampled_cross_entropy
from densepred.tasks import Segmentation


def with_gradient(loss, output, *arguments):
    output = output.detach().clone().requires_grad_()
    value = loss(output, *arguments)
    value.backward()
    return value.detach(), output.grad


def unfused(planes, labels, class_weights=None, label_smoothing=0.0):
    logits = F.interpolate(planes, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels.long(), class_weights, ignore_index=255, label_smoothing=label_smoothing)


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
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.usefixtures("small_bands")
def test_the_fused_loss_is_interpolate_and_cross_entropy(size, image, weighted, smoothing):
    labels = torch.randint(0, size[1], (size[0], *image), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 0.2] = 255
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        planes = torch.randn(size, dtype=dtype) * 4
        weights = torch.rand(size[1], dtype=dtype) + 0.1 if weighted else None
        expected, expected_gradient = with_gradient(unfused, planes, labels, weights, smoothing)
        value, gradient = with_gradient(upsampled_cross_entropy, planes, labels, weights, smoothing)
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
        scale = expected_gradient.abs().max()
        assert (gradient - expected_gradient).abs().max() <= 4 * tolerance * scale


@pytest.mark.parametrize("image", [(12, 17), (24, 34)])
@pytest.mark.usefixtures("small_bands")
def test_planes_laid_out_by_pixels_give_the_same(image):
    planes, labels = torch.randn(2, 5, 12, 17), torch.randint(0, 5, (2, *image))
    by_channels = with_gradient(upsampled_cross_entropy, planes, labels)
    by_pixels = with_gradient(upsampled_cross_entropy, planes.contiguous(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(by_pixels, by_channels, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_fused_gradient_agrees_with_finite_differences(smoothing):
    labels = torch.randint(0, 3, (2, 9, 7))
    labels[0, :2] = -1
    planes = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.5, 1.0, 2.0])
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy(x, labels, weights, smoothing), planes)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.3, 2.0, 1.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_fused_loss_of_an_unlabelled_batch_is_zero_with_zero_gradient(weights, smoothing):
    labels = torch.full((2, 16, 16), 255, dtype=torch.uint8)
    value, gradient = with_gradient(upsampled_cross_entropy, torch.randn(2, 3, 4, 4), labels, weights, smoothing)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_unlabelled_image_of_a_batch_has_exactly_zero_gradient_in_the_fused_loss(smoothing):
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    labels[0] = 255
    _, gradient = with_gradient(upsampled_cross_entropy, torch.randn(2, 3, 4, 4) * 1e4, labels, None, smoothing)
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


def test_segmentation_fuses_label_smoothing_and_class_weights_too():
    planes, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 16, 16))
    task = Segmentation(3, loss=CrossEntropyLoss([1.0, 2.0, 0.5], label_smoothing=0.2))
    batch = {"image": torch.zeros(1, 3, 16, 16), "segmentation": labels}
    assert task.fused
    expected = unfused(planes, labels, torch.tensor([1.0, 2.0, 0.5]), 0.2)
    torch.testing.assert_close(task.loss_from_planes(planes, batch), expected)


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
