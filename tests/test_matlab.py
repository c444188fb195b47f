"""MATLAB files are read as SciPy reads them, and damaged ones are told."""

import io

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from densepred.data.prepare.matlab import read_mat


def written(variables: dict, **options) -> bytes:
    content = io.BytesIO()
    savemat(content, variables, **options)
    return content.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 1), (2, 3, 4), (0, 3)])
def test_arrays_are_as_scipy_reads_them(packed, kind, shape):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(kind)
    content = written({"before": "text", "x": array, "after": {"y": 1}}, do_compression=packed)
    expected = loadmat(io.BytesIO(content))["x"]
    np.testing.assert_array_equal(read_mat(content, "x"), expected)
    assert read_mat(content, "x").dtype == expected.dtype


@pytest.mark.parametrize("packed", [False, True])
def test_a_field_of_a_struct_is_found_among_others(packed):
    labels = np.arange(35, dtype=np.uint8).reshape(5, 7)
    cells = np.empty((2, 1), dtype=object)
    cells[:] = [["a"], [np.eye(3)]]
    content = written(
        {"GTcls": {"Boundaries": cells, "Segmentation": labels, "Categories": [1, 2]}}, do_compression=packed
    )
    np.testing.assert_array_equal(read_mat(content, "GTcls", "Segmentation"), labels)
    with pytest.raises(ValueError, match="no field Other, only Boundaries, Segmentation, Categories"):
        read_mat(content, "GTcls", "Other")


def test_the_official_files_are_as_scipy_reads_them(real_data):
    files = sorted((real_data / "nyuv2" / "meta").glob("*.mat"))
    compared = 0
    for file in files:
        for name, expected in loadmat(file).items():
            if not name.startswith("__") and expected.dtype.kind in "uif":
                np.testing.assert_array_equal(read_mat(file.read_bytes(), name), expected)
                compared += 1
    assert compared >= 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no MATLAB file"),
        (b"x" * 500, "no MATLAB file"),
        (written({"y": 1}), "no x"),
        (written({"x": "text"}), "no numbers"),
    ],
)
def test_what_is_not_there_is_told(content, words):
    with pytest.raises(ValueError, match=words):
        read_mat(content, "x")


def test_an_element_of_an_unknown_kind_which_ends_scipys_process_is_told():
    content = bytearray(written({"x": np.arange(1000.0)}))
    place = content.index(np.float64(1.0).tobytes()) - 16  # the tag of the numbers
    content[place] = 200
    with pytest.raises(ValueError, match="unknown kind 200"):
        read_mat(bytes(content), "x")
