"""Point clouds: files that other programs read, geometry, what is missing, cameras."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densepred.data.rooms import Rooms
from densepred.errors import ConfigurationError, DataError
from densepred.geometry import project
from densepred.inference.cameras import AssumedCamera, default_intrinsics, film_intrinsics
from densepred.inference.photos import read_photo
from densepred.inference.point_cloud import ply_bytes, prediction_ply, write_ply
from densepred.inference.prediction import Prediction
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation

FORMATS = {"float": ("f", 4), "uchar": ("B", 1)}


def read_ply(content: bytes) -> dict[str, np.ndarray]:
    """A reader by the format's definition, byte by byte, that shares nothing with the writer."""
    header, _, body = content.partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    (count,) = [int(line.split()[2]) for line in lines if line.startswith("element vertex ")]
    properties = [line.split()[1:] for line in lines if line.startswith("property ")]
    row = "<" + "".join(FORMATS[kind][0] for kind, _ in properties)
    assert len(body) == count * sum(FORMATS[kind][1] for kind, _ in properties)
    values = np.array(list(struct.iter_unpack(row, body)), np.float64).reshape(count, len(properties))
    return {name: values[:, index] for index, (_, name) in enumerate(properties)}


def points_of(cloud: dict[str, np.ndarray], names: tuple[str, ...] = ("x", "y", "z")) -> np.ndarray:
    return np.stack([cloud[name] for name in names], -1)


@pytest.fixture(scope="module")
def room() -> dict[str, np.ndarray]:
    return Rooms("val", count=1, size=(48, 64)).read(0)


def test_every_point_is_seen_at_its_pixel_at_its_depth_in_its_colour(room, tmp_path):
    count = write_ply(tmp_path / "room.ply", room["depth"], room["intrinsics"], room["image"])
    cloud = read_ply((tmp_path / "room.ply").read_bytes())
    rows, columns = np.mgrid[:48, :64]
    assert count == len(cloud["x"]) == 48 * 64
    seen = project(points_of(cloud).astype(np.float32), room["intrinsics"])
    np.testing.assert_allclose(seen, np.stack([columns.ravel(), rows.ravel()], -1), atol=1e-3)
    np.testing.assert_array_equal(cloud["z"], room["depth"].ravel())
    np.testing.assert_array_equal(points_of(cloud, ("red", "green", "blue")), room["image"].reshape(-1, 3))


def test_a_wall_of_known_size_has_that_size():
    wall = np.full((3, 5), 4.0, np.float32)
    camera = np.array([[2, 0, 2], [0, 2, 1], [0, 0, 1]], np.float32)
    cloud = read_ply(ply_bytes(wall, camera, np.zeros((3, 5, 3), np.uint8)))
    assert (np.ptp(cloud["x"]), np.ptp(cloud["y"]), np.ptp(cloud["z"])) == (8, 4, 0)  # 4 and 2 pixels of 4 m / 2


def test_normals_go_along_and_missing_ones_are_the_zero_vector(room):
    normals = room["normals"].copy()
    normals[0, 0] = 0
    cloud = read_ply(ply_bytes(room["depth"], room["intrinsics"], room["image"], normals))
    assert list(cloud) == ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"]
    np.testing.assert_array_equal(points_of(cloud, ("nx", "ny", "nz")), normals.reshape(-1, 3))
    facing = (points_of(cloud) * points_of(cloud, ("nx", "ny", "nz"))).sum(-1)
    assert (facing <= 0).all()


def test_missing_depth_makes_no_point(room):
    depth = room["depth"].copy()
    depth[0, :5] = [0, np.nan, np.inf, -1, -np.inf]
    cloud = read_ply(ply_bytes(depth, room["intrinsics"], room["image"], room["normals"]))
    np.testing.assert_array_equal(cloud["z"], room["depth"].ravel()[5:])
    np.testing.assert_array_equal(points_of(cloud, ("red", "green", "blue")), room["image"].reshape(-1, 3)[5:])


def test_a_file_is_whole_or_not_there(room, tmp_path, monkeypatch):
    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_ply(tmp_path / "room.ply", room["depth"], room["intrinsics"], room["image"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": np.ones((1, 4, 4), np.float32)}, r"expected depth \(H, W\)"),
        ({"depth": np.zeros((4, 4), np.float32)}, "4 x 4 pixels none has a known depth"),
        ({"image": np.zeros((4, 5, 3), np.uint8)}, r"wants image \(4, 4, 3\); got \(4, 5, 3\)"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "colours as uint8, got float32"),
        ({"normals": np.zeros((3, 4, 4), np.float32)}, r"wants normals \(4, 4, 3\)"),
        ({"intrinsics": np.zeros((3, 3), np.float32)}, "focal lengths above 0"),
        ({"intrinsics": np.ones(4, np.float32)}, r"intrinsics \(3, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(change, message):
    given = {
        "depth": np.ones((4, 4), np.float32),
        "intrinsics": default_intrinsics((4, 4)),
        "image": np.zeros((4, 4, 3), np.uint8),
    }
    with pytest.raises(DataError, match=message):
        ply_bytes(**given | change)


def test_an_unknown_camera_sees_its_field_of_view_between_the_outer_borders_of_the_longer_side():
    for size, axis in (((480, 640), 0), ((640, 480), 1)):
        camera = default_intrinsics(size, 60)
        borders = (np.array([-0.5, 639.5]) - camera[axis, 2]) / camera[axis, axis]
        assert np.degrees(np.ptp(np.arctan(borders))) == pytest.approx(60, abs=1e-3)
    with pytest.raises(ConfigurationError, match="between 0 and 180"):
        default_intrinsics((4, 4), 180)


def test_the_focal_length_of_a_photo_is_that_of_film_of_the_same_diagonal(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "maker"  # Pillow writes no EXIF data into some formats where the first part is empty
    exif.get_ifd(0x8769)[0xA405] = 26  # FocalLengthIn35mmFilm
    for ending in ("jpg", "png", "webp"):
        Image.new("RGB", (36, 24)).save(tmp_path / f"told.{ending}", exif=exif)
        assert read_photo(tmp_path / f"told.{ending}").focal_on_film == 26
        assert read_photo(Image.open(tmp_path / f"told.{ending}")).focal_on_film == 26
    exif.get_ifd(0x8769)[0xA405] = 0  # unknown, by the standard
    Image.new("RGB", (36, 24)).save(tmp_path / "unknown.jpg", exif=exif)
    Image.new("RGB", (36, 24)).save(tmp_path / "untold.jpg")
    assert read_photo(tmp_path / "unknown.jpg").focal_on_film == 0
    assert read_photo(tmp_path / "untold.jpg").focal_on_film == 0
    np.testing.assert_allclose(film_intrinsics(26, (2400, 3600)), [[2600, 0, 1799.5], [0, 2600, 1199.5], [0, 0, 1]])


def test_a_camera_is_what_is_given_then_what_the_photo_tells_then_what_is_assumed():
    photo = Prediction(torch.zeros(3, 24, 36, dtype=torch.uint8), {}, [Depth()], focal_on_film=26.0)
    unknown = Prediction(photo.image, {}, [Depth()])
    given = AssumedCamera(intrinsics=(10, 11, 12, 13))
    assert given.of(photo).tolist() == [[10, 0, 12], [0, 11, 13], [0, 0, 1]]
    assert given.note(photo) == ""
    np.testing.assert_allclose(AssumedCamera().of(photo)[0, 0], 26)  # 24 x 36 pixels for 24 x 36 mm
    assert "EXIF" in AssumedCamera().note(photo)
    np.testing.assert_allclose(AssumedCamera(90).of(unknown)[0, 0], 18)
    assert "field of view of 90 degrees" in AssumedCamera(90).note(unknown)
    with pytest.raises(ConfigurationError, match="expected fx fy cx cy in pixels"):
        AssumedCamera(intrinsics=(0, 1, 1, 1))


def test_a_prediction_becomes_a_cloud_with_its_own_depth_normals_and_colours(room):
    image = torch.from_numpy(room["image"]).permute(2, 0, 1)
    values = {
        "depth": torch.from_numpy(room["depth"])[None],
        "normals": torch.from_numpy(room["normals"]).permute(2, 0, 1),
    }
    prediction = Prediction(image, values, [Depth(), Normals()])
    expected = ply_bytes(room["depth"], room["intrinsics"], room["image"], room["normals"])
    assert prediction_ply(prediction, room["intrinsics"]) == expected
    guessed = read_ply(prediction_ply(prediction))
    np.testing.assert_array_equal(guessed["z"], room["depth"].ravel())


def test_a_prediction_without_depth_makes_no_cloud():
    labels = Prediction(torch.zeros(3, 4, 4, dtype=torch.uint8), {}, [Segmentation(3)])
    with pytest.raises(ConfigurationError, match="needs depth; the network predicts segmentation"):
        prediction_ply(labels)
