"""Where surface normals come from, for data sets that have depth: made from it, or read from files."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from densepred.data.atomic import whole_file
from densepred.data.images import read_image, read_npy
from densepred.errors import ConfigurationError, DataError
from densepred.geometry import normals_from_depth, normals_record
from densepred.recipe import Recorded


class NormalsSource(Recorded, ABC):
    """Gives the normals of a frame: unit vectors x right, y down, z forward, facing the camera; zero where missing."""

    record: dict[str, Any]
    """How the normals were made, as plain values to keep beside results."""

    @abstractmethod
    def read(self, name: str, depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        """Depth (H, W) in metres and intrinsics (3, 3) of the frame to normals (H, W, 3) float32."""

    def file(self, name: str) -> Path | None:
        """The file of a frame's normals, if they are read from one."""
        return None


class NormalsFromDepth(NormalsSource):
    """Makes normals from depth, by `densepred.geometry.normals_from_depth`: pseudo-normals.

    Args:
        window: Side of the window in pixels, odd. 21 with a blur of 3 suits the 8-bit or noisy depth of indoor sensors.
        blur: Sigma in pixels of the blur before the fit.
        method: "window", or "toolbox" for the NYU toolbox's (slow: use a cache).
        cache: A folder that keeps what was made: float16 `.npy`, 1.8 MB a frame of 480 x 640, read some 20 times
            faster than made. `method.json` in it says how; None makes them anew each time.

    Missing pixels: where depth is missing or too few neighbours are known.

    Raises:
        ConfigurationError: If the cache holds normals made otherwise.
    """

    def __init__(
        self,
        window: int = 21,
        blur: float = 3.0,
        method: Literal["window", "toolbox"] = "window",
        cache: str | None = None,
    ) -> None:
        self.window = window
        self.blur = blur
        self.method: Literal["window", "toolbox"] = method
        self.record = normals_record(window, blur, method)
        self.cache = Path(cache) if cache else None
        if self.cache:
            _claim(self.cache, self.record)

    def read(self, name: str, depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        """The normals of a frame, from the cache where they are in it."""
        kept = self.cache / f"{name}.npy" if self.cache else None
        if kept and kept.exists():
            return _unit(np.asarray(read_npy(kept), np.float32))
        normals = normals_from_depth(depth, intrinsics, self.window, self.blur, self.method)
        if kept is None:
            return normals
        half = normals.astype(np.float16)
        with whole_file(kept, shared=True) as temporary, temporary.open("wb") as file:
            np.save(file, half)
        # the same numbers the first time as later
        return _unit(half.astype(np.float32))


class NormalsFromFiles(NormalsSource):
    """Reads normals from `NAME.npy` (H, W, 3) or `NAME.png` (8-bit RGB, n = 2 v / 255 - 1).

    Vectors are made unit length; a vector whose length is not near 1 (the grey 127 or 128, black, zero, NaN) is
    missing. Public sets differ in axes: `signs` brings them to x right, y down, z forward, facing the camera.

    Args:
        folder: Where the files are.
        signs: Factor of x, y and z, 1 or -1; (1, -1, -1) for y up and z towards the viewer.

    Raises:
        DataError: If a file is missing or broken, or most of its vectors face away from the camera.
    """

    def __init__(self, folder: str, signs: tuple[int, int, int] = (1, 1, 1)) -> None:
        if any(sign not in (1, -1) for sign in signs):
            raise ConfigurationError(f"NormalsFromFiles: signs must be 1 or -1 for each of x, y, z; got {signs}.")
        self.folder = Path(folder)
        self.signs = np.array(signs, np.float32)
        self.record = {"source": "files", "folder": folder, "signs": list(signs)}

    def file(self, name: str) -> Path:
        """The .npy where there is one, else the .png."""
        array = self.folder / f"{name}.npy"
        return array if array.exists() else self.folder / f"{name}.png"

    def read(self, name: str, depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        """The normals of a frame."""
        advice = "turn axes round by `signs`, such as (1, -1, -1) for y up and z towards the viewer"
        return read_normals(self.file(name), (depth.shape[0], depth.shape[1]), np.diag(self.signs), advice)


def read_normals(path: Path, size: tuple[int, int], axes: np.ndarray, advice: str) -> np.ndarray:
    """Unit normals from a .npy of vectors, or a picture of n = 2 v / 255 - 1; zero where missing.

    Args:
        path: The file.
        size: (height, width) of the image.
        axes: What takes a vector of the file to x right, y down, z forward: (3, 3).
        advice: What to do where most vectors face away from the camera.

    Shape:
        returns: (H, W, 3) float32.

    Raises:
        DataError: If the file is broken, of another size, or most of its vectors face away from the camera.
    """
    stored = read_npy(path) if path.suffix == ".npy" else read_image(path).astype(np.float32) * (2 / 255) - 1
    if stored.shape != (*size, 3):
        raise DataError(f"{path}: expected normals of shape {(*size, 3)}, got {stored.shape}.")
    vectors = np.asarray(stored, np.float32)
    signs = np.diag(axes).astype(np.float32)
    # by signs alone three times faster, the usual case
    turned = vectors * signs if np.array_equal(np.diag(signs), axes) else vectors @ axes.T.astype(np.float32)
    normals = _unit(turned)
    if (normals[..., 2] > 0).sum() > (normals[..., 2] < 0).sum():
        raise DataError(
            f"{path}: most normals point away from the camera (z > 0). Expected x right, y down, z forward, facing the "
            f"camera: {advice}."
        )
    return normals


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors; zero where the length is not near 1."""
    length = np.sqrt(np.einsum("hwc,hwc->hw", vectors, vectors))
    known = (length > 0.5) & (length < 1.5)
    factor = np.divide(1, length, out=np.zeros_like(length), where=known)
    # NaN times 0 is NaN
    return np.where(known[..., None], vectors * factor[..., None], np.float32(0))


def _claim(folder: Path, record: dict[str, Any]) -> None:
    """Writes how the folder's normals are made, or refuses if they were made otherwise."""
    path = folder / "method.json"
    if not path.exists():
        with whole_file(path, shared=True) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    if before != record:
        raise ConfigurationError(
            f"{folder}: its normals were made with {before}, but {record} is asked for. Name another cache, delete "
            "this one, or ask for what is in it."
        )
