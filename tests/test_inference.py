"""From a checkpoint to answers: loading without Lightning, pictures of every kind, evidence and its means."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image, ImageOps

from densepred.data.rooms import RoomsDataModule
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError, DataError
from densepred.inference.checkpoint import load_network
from densepred.inference.evidence import MeanEvidence, Mixture, NetworkEvidence
from densepred.inference.photos import read_photo
from densepred.inference.predictor import Predictor
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.recipe import rebuilt, recipe, refuse_foreign
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation

EVERY_TASK = [
    Segmentation(5),
    Segmentation(["cat"], mode="binary"),
    Segmentation(3, mode="multilabel"),
    Depth(),
    Depth(log=True),
    Depth(bins=12),
    Normals(),
    Normals(uncertainty=True),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = DensePredictor(ResNetEncoder("resnet18"), UNetDecoder, [Segmentation(11), Depth(), Normals()])
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, RoomsDataModule(size=(64, 96), train=2, val=2, batch_size=2, num_workers=0))
    path = folder / "last.ckpt"
    trainer.save_checkpoint(path)
    return path, module.eval()


def test_a_checkpoint_is_loaded_and_predicts_without_lightning_and_wandb(checkpoint):
    path, _ = checkpoint
    code = (
        "import sys, numpy as np; from densepred.inference import Predictor;"
        f"Predictor.load({str(path)!r})(np.zeros((64, 96, 3), np.uint8));"
        "print(*sorted({'pytorch_lightning', 'lightning_fabric', 'wandb', 'albumentations'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_a_predictor_answers_as_the_module_does(checkpoint):
    path, module = checkpoint
    image = torch.randint(0, 256, (3, 70, 101), dtype=torch.uint8)
    with torch.inference_mode():
        expected = module(image[None])
    for predictor in (Predictor.load(path, "cpu"), Predictor.of(module)):
        prediction = predictor(image)
        for name, value in expected.items():
            torch.testing.assert_close(prediction[name], value[0])
    assert prediction["segmentation"].shape == (70, 101)
    assert prediction.render().shape[:2] == (3, 70)


def test_several_images_give_lists_and_streams_are_read_one_by_one(checkpoint, tmp_path):
    predictor = Predictor.load(checkpoint[0], "cpu")
    batch = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    listed = predictor(batch)
    assert [one["depth"].shape for one in listed] == [(1, 64, 64)] * 2
    read = []

    def stream():
        for image in batch:
            read.append(1)
            yield image

    first = next(predictor(stream()))
    assert len(read) == 1
    torch.testing.assert_close(first["depth"], listed[0]["depth"])
    for name in ("b.png", "a.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    assert [one.name for one in predictor(tmp_path)] == ["a.jpg", "b.png"]


def test_foreign_classes_are_refused_unless_allowed():
    plain = {"tasks": [{"class_path": "os.system", "init_args": {}}]}
    with pytest.raises(ConfigurationError, match=r"x\.ckpt wants the class os\.system"):
        refuse_foreign(plain, "x.ckpt")
    refuse_foreign(plain, "x.ckpt", allow=["os"])
    with pytest.raises(ConfigurationError, match=r"torchlike\.Thing"):
        refuse_foreign({"class_path": "torchlike.Thing"}, "x.ckpt")


@pytest.mark.parametrize("path", ["os.system", "torch.hub.load", "densepred.nothing.Here", "pathlib.Path", "Short"])
def test_only_parts_of_networks_are_built(path):
    with pytest.raises(ConfigurationError, match=path.rpartition(".")[2]):
        rebuilt({"class_path": path, "init_args": {}})


def test_what_a_recipe_describes_is_built_again():
    network = rebuilt(recipe(Segmentation(["a", "b"], class_weights=[1.0, 2.0])))
    assert network.classes == ["a", "b"]
    assert network.loss.class_weights.tolist() == [1.0, 2.0]


def test_a_file_that_is_no_checkpoint_of_densepred_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(ConfigurationError, match="does not say how its network was built"):
        load_network(tmp_path / "x.ckpt")


@pytest.mark.parametrize("task", EVERY_TASK, ids=lambda task: f"{type(task).__name__}-{task.out_channels}")
def test_evidence_of_one_output_decides_as_the_output_does(task):
    torch.manual_seed(1)
    output = task.activate(3 * torch.randn(2, task.out_channels, 9, 7))
    torch.testing.assert_close(task.decide(task.evidence(output)), task.predict(output))


def test_flips_and_zooms_of_evidence_follow_geometry():
    metres = torch.full((1, 1, 2, 2), 3.0)
    torch.testing.assert_close(Depth().decide(Depth().unzoomed((metres / 2).log(), 2.0)), metres)
    left = torch.tensor([-0.6, 0.0, -0.8]).view(1, 3, 1, 1)
    torch.testing.assert_close(Normals().unflipped(left).flatten(), torch.tensor([0.6, 0.0, -0.8]))


@pytest.mark.parametrize("merge", ["mean", "logit", "max"])
def test_probabilities_are_merged_by_their_definitions(merge):
    task = Segmentation(4)
    logits = np.random.default_rng(0).normal(size=(3, 1, 4, 2, 2))
    probabilities = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    mixture = Mixture([task], merge)
    for one in probabilities:
        mixture.add({"segmentation": torch.from_numpy(one)})
    if merge == "mean":
        expected = probabilities.mean(0)
    elif merge == "logit":
        expected = np.exp(logits.mean(0)) / np.exp(logits.mean(0)).sum(1, keepdims=True)
    else:
        expected = probabilities.max(0) / probabilities.max(0).sum(1, keepdims=True)
    np.testing.assert_allclose(mixture.mean()["segmentation"].numpy(), expected, rtol=1e-6)


def test_an_ensemble_is_the_mean_of_its_members():
    tasks = [Segmentation(3), Depth(), Normals()]
    members = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = DenseNetwork(ResNetEncoder("resnet18"), UNetDecoder, {t.name: t.out_channels for t in tasks})
        members.append(NetworkEvidence(network.eval(), tasks))
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        alone, joint = [member(image) for member in members], MeanEvidence(members)(image)
    for name, mean in joint.items():
        torch.testing.assert_close(mean, (alone[0][name] + alone[1][name]) / 2)
    members[1].tasks = [Segmentation(4)]
    with pytest.raises(ConfigurationError, match="same tasks and classes"):
        MeanEvidence(members)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_as_pillow_turns_them(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    path = tmp_path / "photo.png"
    image.save(path, exif=image.getexif())
    photo = read_photo(path)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(photo.image.permute(1, 2, 0).numpy(), expected)
    assert bool(photo.notes) == (orientation != 1)


def test_pictures_of_every_kind_become_what_the_network_takes(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    photo = read_photo(tmp_path / "grey.png")
    assert (photo.image == torch.from_numpy(grey)).all()
    assert photo.notes == ("grey, as three equal channels",)
    deep = (grey.astype(np.uint16) * 1000)[..., None].repeat(3, 2)
    deep[..., 0] = 7  # blue, as OpenCV writes
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    photo = read_photo(tmp_path / "deep.png")
    assert photo.image.dtype == torch.float32
    np.testing.assert_allclose(photo.image[2].numpy(), 7 / 65535)
    np.testing.assert_allclose(photo.image[0].numpy(), deep[..., 2] / 65535)
    transparent = Image.new("RGBA", (8, 6), (200, 0, 0, 0))
    transparent.putpixel((0, 0), (10, 20, 30, 255))
    transparent.save(tmp_path / "transparent.png")
    photo = read_photo(tmp_path / "transparent.png")
    assert photo.image[:, 0, 0].tolist() == [10, 20, 30]
    assert photo.image[:, 1, 1].tolist() == [255, 255, 255]
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "palette.png")
    assert read_photo(tmp_path / "palette.png").image[:, 0, 0].tolist() == [9, 8, 7]
    one = read_photo(np.full((6, 8, 3), 100, np.uint8), channels=1)
    assert one.image.shape == (1, 6, 8)
    assert one.image.unique().tolist() == [100]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 5), np.uint8), "takes 3 channels, the image has 5"),
        (np.full((4, 4, 3), 200.0), "goes from 200 to 200"),
        (np.full((4, 4, 3), np.nan), "goes from nan"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (torch.zeros(4, 4), "tensor of shape"),
        (7, "got int"),
        ("nowhere.png", "no such file"),
    ],
)
def test_what_cannot_be_an_image_is_refused(source, message):
    with pytest.raises(DataError, match=message):
        read_photo(source)
