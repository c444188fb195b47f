"""Decoded pictures that are kept: the same pixels, decoded once, never stale, never in the way."""

import os

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from densepred.data import images
from densepred.data.camvid import CamVidDataModule
from densepred.data.decoded import DECODED
from densepred.data.transforms.flip import FlipLeftRight
from densepred.data.transforms.scale_crop import ScaleCrop
from densepred.errors import DataError
from tests.fakes import write_camvid

KEPT = "*/*.npy"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(DECODED, str(tmp_path / "decoded"))
    return tmp_path / "decoded"


def photo(path, seed=0, size=(20, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def no_decoder(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cv2, "imdecode", refuse)
    monkeypatch.setattr(images, "_open", refuse)


def test_pictures_labels_and_depth_are_decoded_once(folder, tmp_path, monkeypatch):
    pixels = photo(tmp_path / "a.png")
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    depth = np.arange(12, dtype=np.uint16).reshape(3, 4) * 500
    cv2.imwrite(str(tmp_path / "depth.png"), depth)

    def read():
        yield images.read_image(tmp_path / "a.png"), pixels
        yield images.read_label(tmp_path / "labels.png"), labels
        yield images.read_depth(tmp_path / "depth.png"), depth.astype(np.float32) * np.float32(0.001)
        yield images.read_depth(tmp_path / "depth.png", 0.01), depth.astype(np.float32) * np.float32(0.01)

    for found, expected in read():
        np.testing.assert_array_equal(found, expected)
    assert len(list(folder.glob(KEPT))) == 4
    no_decoder(monkeypatch)
    for found, expected in read():
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        found[:] = 0  # what a transform does to its sample stays its own
    for found, expected in read():
        np.testing.assert_array_equal(found, expected)


def test_changed_pictures_are_decoded_again(folder, tmp_path):
    path = tmp_path / "a.png"
    photo(path)
    images.read_image(path)
    changed = photo(path, seed=1)
    os.utime(path, ns=(0, 1))
    np.testing.assert_array_equal(images.read_image(path), changed)


def test_damaged_kept_files_are_made_anew(folder, tmp_path):
    pixels = photo(tmp_path / "a.png")
    images.read_image(tmp_path / "a.png")
    (kept,) = folder.glob(KEPT)
    for content in (b"", kept.read_bytes()[:200], b"<html>"):
        kept.write_bytes(content)
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), pixels)
        np.testing.assert_array_equal(np.load(kept), pixels)


def test_a_folder_that_cannot_be_written_is_said_and_costs_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(DECODED, str(tmp_path / "file"))
    pixels = photo(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="decoded pictures cannot be kept"):
        np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), pixels)


def test_what_is_refused_is_refused_every_time(folder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(DataError, match=r"a\.png"):
            images.read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="there is no such file"):
        images.read_image(tmp_path / "missing.png")
    assert not list(folder.glob(KEPT))


def test_training_batches_are_the_same(tmp_path, monkeypatch):
    write_camvid(tmp_path / "camvid")

    def batches():
        data = CamVidDataModule(
            tmp_path / "camvid", batch_size=2, num_workers=0,
            train_transforms=[ScaleCrop(size=(24, 32), scale=(0.5, 2.0)), FlipLeftRight()],
        )  # fmt: skip
        data.setup("fit")
        return [*data.train_dataloader(), *data.val_dataloader()]

    expected = batches()
    monkeypatch.setenv(DECODED, str(tmp_path / "decoded"))
    batches()
    no_decoder(monkeypatch)
    monkeypatch.setattr("densepred.data.datamodule.check_files", lambda *arguments, **options: None)
    for found, plain in zip(batches(), expected, strict=True):
        for key in ("image", "segmentation"):
            torch.testing.assert_close(found[key], plain[key], rtol=0, atol=0)
