"""The largest plane of each pixel, against NumPy's argmax: the first of equal ones, NaN before all numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from densepred import largest
from densepred.largest import largest_plane
from densepred.tasks.segmentation import Segmentation

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Calls(TorchDispatchMode):
    """Names of the operations under it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def small_bands(monkeypatch):
    monkeypatch.setattr(largest, "_BAND", 50)
    monkeypatch.setattr(largest, "_FEW", 0)


def numpys(planes: torch.Tensor) -> np.ndarray:
    return planes.double().numpy().argmax(1)


def laid_out(planes: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers, otherwise in memory."""
    if layout == "rows first":
        return planes.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    if layout == "cropped":
        return torch.nn.functional.pad(planes, (1, 2, 3, 4))[..., 3:-4, 1:-2]
    return planes.contiguous(memory_format=getattr(torch, layout))


@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    layout=st.sampled_from(["contiguous_format", "channels_last", "rows first", "cropped"]),
    dtype=st.sampled_from(DTYPES),
    values=st.lists(st.sampled_from([-INF, -1.5, -0.0, 0.0, 0.5, 3.0, INF, NAN]), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_it_is_numpys_argmax_of_ties_infinities_and_nan_in_any_layout(size, layout, dtype, values, seed):
    chosen = torch.randint(len(values), size, generator=torch.Generator().manual_seed(seed))
    planes = laid_out(torch.tensor(values, dtype=dtype)[chosen], layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(largest, "_BAND", 50)
        patch.setattr(largest, "_FEW", 0)
        found = largest_plane(planes, torch.uint8)
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), numpys(planes))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("size", [(8, 2, 264, 250), (1, 21, 264, 250), (2, 256, 64, 70), (2, 300, 64, 70)])
def test_labels_of_images_are_not_found_pixel_by_pixel(size, dtype):
    planes = torch.randn(size)
    with Calls() as calls:
        found = largest_plane(planes, dtype)
    assert found.dtype == dtype
    assert not any("max.dim" in name or "argmax" in name for name in calls.names)
    np.testing.assert_array_equal(found.numpy(), numpys(planes))


@pytest.mark.parametrize("size", [(8, 21, 32, 32), (0, 5, 256, 256), (2, 5, 0, 256), (2, 5, 256, 0)])
def test_few_pixels_or_none_are_one_operation(size):
    planes = torch.randn(size)
    with Calls() as calls:
        found = largest_plane(planes, torch.uint8)
    assert calls.names.count("aten.max.dim") == 1
    assert found.shape == (size[0], *size[2:])
    np.testing.assert_array_equal(found.numpy(), numpys(planes))


@pytest.mark.usefixtures("small_bands")
def test_a_nan_changes_no_other_pixel():
    planes = torch.randn(1, 4, 20, 20)
    expected = largest_plane(planes, torch.uint8)
    planes[0, 2:, 5, 6] = NAN
    found = largest_plane(planes, torch.uint8)
    assert found[0, 5, 6] == 2
    expected[0, 5, 6] = 2
    assert torch.equal(found, expected)


def test_planes_that_train_give_labels_without_gradient_and_stay_as_they_are():
    planes = torch.randn(1, 3, 320, 320, requires_grad=True)
    before = planes.detach().clone()
    labels = Segmentation(3).predict(planes)
    assert not labels.requires_grad
    assert torch.equal(planes.detach(), before)
    with torch.inference_mode():
        assert torch.equal(Segmentation(3).predict(planes), labels)


def test_a_device_is_never_waited_for():
    """Tensors without data stand for a device: whoever asks for a value of theirs gets an error."""
    with Calls() as calls:
        assert largest_plane(torch.empty(2, 5, 256, 256, device="meta"), torch.uint8).shape == (2, 256, 256)
    assert calls.names.count("aten.max.dim") == 1


class Predicting(torch.nn.Module):
    """The function as a module."""

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return largest_plane(planes, torch.uint8)


@pytest.mark.parametrize("how", ["export", "compile"])
def test_graphs_hold_one_operation_whatever_the_size(how):
    planes, larger = torch.randn(2, 3, 320, 320), torch.randn(2, 3, 340, 270)
    if how == "export":
        free = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(Predicting(), (planes,), dynamic_shapes=free)
        graph, run = program.graph, program.module()
    else:
        graphs = []

        def backend(module, _):
            graphs.append(module.graph)
            return module

        run = torch.compile(Predicting(), backend=backend, fullgraph=True, dynamic=True)
        run(planes)
        (graph,) = graphs
    assert "max" in str(graph)
    assert not any(name in str(graph) for name in ("amax", "isnan", "split"))
    np.testing.assert_array_equal(run(larger).numpy(), numpys(larger))
