"""ISBI 2012: the stack, its blocks, and the weights of borders between cells."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from densepred.data.cell_borders import border_weights
from densepred.data.isbi import ISBI2012, ISBI_CLASSES, ISBIDataModule
from densepred.data.transforms import FlipLeftRight, Roll, ScaleCrop
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError, DataError
from densepred.module import DensePredictor
from densepred.tasks.segmentation import Segmentation
from tests.fakes import write_isbi

# ---------------------------------------------------------------------------------------------- the stack


def test_a_sample_is_a_grey_slice_and_its_membranes_and_cells(tmp_path):
    root = write_isbi(tmp_path, slices=3)
    dataset = ISBI2012(root, "all")
    for index, name in enumerate(["0", "1", "2"]):
        sample = dataset[index]
        assert sample["name"] == name
        picture, label = (np.array(Image.open(root / kind / f"{name}.png")) for kind in ("image", "label"))
        assert sample["image"].dtype == torch.uint8
        np.testing.assert_array_equal(sample["image"].numpy(), picture[None])
        np.testing.assert_array_equal(sample["segmentation"].numpy(), label == 255)


def test_blocks_of_the_stack_validate_and_the_others_train(tmp_path):
    root = write_isbi(tmp_path, slices=12)  # 10 and 11 come after 9, not after 1
    numbers = [str(number) for number in range(12)]
    for fold, block in enumerate((slice(8, 12), slice(4, 8), slice(0, 4))):
        val = ISBI2012(root, "val", val_slices=4, fold=fold).names
        assert val == numbers[block]
        assert ISBI2012(root, "train", val_slices=4, fold=fold).names == [n for n in numbers if n not in val]
    for options in ({"fold": 3}, {"fold": -1}, {"val_slices": 0}, {"val_slices": 12}):
        with pytest.raises(ConfigurationError, match=r"a block that the stack of 12 slices does not have"):
            ISBI2012(root, "val", **{"val_slices": 4, **options})
    with pytest.raises(ConfigurationError, match=r"split is 'test'; expected train, val or all"):
        ISBI2012(root, "test")


def test_the_datamodule_serves_batches_and_names_the_classes(tmp_path):
    transforms = [Roll(limit=180.0), ScaleCrop(size=(32, 40), scale=(1.0, 1.0)), FlipLeftRight()]
    data = ISBIDataModule(
        str(write_isbi(tmp_path)), val_slices=2, batch_size=2, num_workers=0, train_transforms=transforms
    )
    data.setup()
    assert data.classes == {"segmentation": ISBI_CLASSES}
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [4, 2, 2]
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 1, 32, 40)
    assert set(batch["segmentation"].unique().tolist()) <= {0, 1, 255}
    everything = ISBIDataModule(data.root, val_slices=2, train_on_all=True, num_workers=0)
    everything.setup("fit")
    assert [len(everything.datasets[split]) for split in ("train", "val")] == [6, 2]


def test_what_is_wrong_with_a_folder_is_said_with_the_layout(tmp_path):
    with pytest.raises(DataError, match="no ISBI 2012 here: there is no such folder") as error:
        ISBIDataModule(str(tmp_path / "nowhere")).setup("fit")
    assert "train-labels.tif" in str(error.value)
    with pytest.raises(DataError, match="it has no folders image and label"):
        ISBI2012(tmp_path)
    root = write_isbi(tmp_path)
    Image.new("L", (64, 64), 128).save(root / "label" / "3.png")
    with pytest.raises(DataError, match=r"(?s)3\.png: label value 128 in 4096 pixels.*0 at membranes, 255 in cells"):
        ISBIDataModule(str(root), val_slices=2).setup("fit")
    Image.new("L", (64, 64)).save(root / "image" / "first.png")
    with pytest.raises(DataError, match=r"found first\.png, whose name is no number"):
        ISBI2012(root)


def test_the_real_stack_has_30_slices_mostly_of_cells(real_data):
    data = ISBIDataModule(str(real_data / "isbi2012"), num_workers=0)
    data.setup("fit")
    train, val = data.datasets["train"], data.datasets["val"]
    assert (len(train), val.names) == (24, ["24", "25", "26", "27", "28", "29"])
    sample = val[0]
    assert sample["image"].shape == (1, 512, 512)
    assert set(sample["segmentation"].unique().tolist()) == {0, 1}
    assert 0.7 < sample["segmentation"].float().mean() < 0.9
    # membranes are dark
    means = [sample["image"][0][sample["segmentation"] == index].float().mean() for index in (0, 1)]
    assert means[0] < means[1] - 20


@pytest.mark.slow
def test_a_small_unpadded_unet_learns_a_real_slice(real_data):
    sample = ISBI2012(real_data / "isbi2012", "val")[0]
    batch = {"image": sample["image"][None, :, :68, :68], "segmentation": sample["segmentation"][None, :68, :68]}
    module = DensePredictor(
        UNetEncoder(1, (8, 16, 32), padded=False, norm="none"),
        partial(UNetDecoder, widths=(16, 8), upsampling="transposed", norm="none", initialisation="kaiming"),
        [Segmentation(ISBI_CLASSES)],
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.005)
    for _ in range(200):
        planes = module.network.planes(batch["image"])["segmentation"]
        loss = module.tasks[0].loss_from_planes(planes, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (module(batch["image"])["segmentation"] == batch["segmentation"]).float().mean()
    share = batch["segmentation"].float().mean()
    assert right > max(share, 1 - share) + 0.08


# ---------------------------------------------------------------------------------------------- borders


@pytest.mark.parametrize(("width", "expected"), [(4, 6.0653), (9, 1.3534), (1, 9.2312)])
def test_a_seam_between_two_cells_weighs_by_its_width(width, expected):
    """Across a straight seam d1 + d2 is its width and one, from centre to centre: 10 exp(-(d1 + d2)^2 / 50)."""
    labels = np.ones((30, 20 + width), np.uint8)
    labels[:, 10:-10] = 0
    weights = border_weights(labels, balance=False)
    np.testing.assert_allclose(weights[:, 10:-10] - 1, expected, atol=1e-4)
    assert (weights[labels == 1] == 1).all()
    # the closer, the nearer to the peak
    np.testing.assert_allclose(border_weights(labels, peak=3.0, sigma=1e4, balance=False)[:, 10:-10], 4, atol=1e-3)


def test_weights_are_those_of_scipys_distances():
    labels = (np.random.default_rng(0).random((24, 31)) > 0.85).astype(np.uint8)
    labels = ndimage.binary_dilation(labels, iterations=1).astype(np.uint8)
    pieces, count = ndimage.label(labels)
    away = np.sort([ndimage.distance_transform_edt(pieces != k) for k in range(1, count + 1)], axis=0)
    frequency = np.bincount(labels.ravel()) / labels.size
    expected = 1 / (2 * frequency[labels]) + np.where(labels == 0, 10 * np.exp(-((away[0] + away[1]) ** 2) / 50), 0)
    assert count > 3
    np.testing.assert_allclose(border_weights(labels), expected, rtol=1e-5)


def test_classes_weigh_the_same_in_total_and_missing_pixels_nothing():
    labels = np.zeros((10, 10), np.uint8)
    labels[:2] = 1
    labels[9] = 255
    weights = border_weights(labels)
    assert (weights[9] == 0).all()
    sums = [weights[labels == index].sum() for index in (0, 1)]
    # a single cell has no border with another
    np.testing.assert_allclose(sums, [45, 45], rtol=1e-6)
    assert border_weights(np.zeros((4, 4), np.uint8)).tolist() == [[1.0] * 4] * 4
