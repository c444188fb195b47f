"""Codewords: a few directions that stand for all surface normals. Made, fitted, triangulated, read and written."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from densepred.errors import ConfigurationError

KEY = "codebook"
"""The option that names a file of codewords, and the key of the codewords in it."""

FEWEST = 5
"""Codewords that `hemisphere_codewords` can spread: four on the rim and one inside it."""

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_ITERATIONS = 100


def hemisphere_codewords(count: int) -> np.ndarray:
    """Directions spread over the hemisphere that faces the camera; no data are needed.

    About sqrt(2 pi count) of them, a multiple of four, stand on the rim (z = 0) at equal angles, so that the triangles
    between codewords cover the hemisphere to its very edge, and left, right, up and down, the walls and floors of a
    room seen straight, are codewords themselves. The others follow a spiral of golden angles inside the rim, each with
    the same area around it.

    Args:
        count: How many.

    Shape:
        returns: (count, 3), unit vectors, x right, y down, z forward; z <= 0.

    Raises:
        ConfigurationError: If there are fewer than five.

    Example:
        >>> hemisphere_codewords(5).round(3)[:4] + 0.0
        array([[ 1.,  0.,  0.],
               [ 0.,  1.,  0.],
               [-1.,  0.,  0.],
               [ 0., -1.,  0.]])
    """
    if count < FEWEST:
        raise ConfigurationError(f"A codebook needs at least {FEWEST} codewords; got {count}. Published: 20 and 40.")
    rim = min(4 * round(math.sqrt(2 * math.pi * count) / 4), (count - 1) // 4 * 4)
    inside = count - rim
    angles = 2 * math.pi * np.arange(rim) / rim
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(rim)], 1)
    # half a spacing below the rim the codewords of the rim take over
    top = math.sin(math.pi / rim)
    z = -1 + (1 - top) * (np.arange(inside) + 0.5) / inside
    turn = _GOLDEN_ANGLE * np.arange(inside)
    radius = np.sqrt(1 - z**2)
    return np.concatenate([ring, np.stack([radius * np.cos(turn), radius * np.sin(turn), z], 1)])


def fit_codewords(normals: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Codewords of measured normals, by k-means on the sphere.

    Nearness is the cosine; a codeword is the mean direction of what is nearest to it. It starts as greedy k-means++
    does: candidates for each further codeword are drawn with probability proportional to 1 - cosine to the nearest
    there is, and the one that brings most is taken. It ends when no normal changes its codeword, or after 100 rounds.
    A codeword that has lost all its normals moves to the one that is worst represented.

    Args:
        normals: Unit vectors; zero vectors are missing and left out.
        count: How many codewords.
        seed: Of the start.

    Shape:
        normals: (N, 3). Returns (count, 3), most frequent first.

    Raises:
        ConfigurationError: If there are fewer different normals than codewords.

    Reference:
        Dhillon, Modha. Concept Decompositions for Large Sparse Text Data Using Clustering. Machine Learning 2001
        (spherical k-means); Arthur, Vassilvitskii. k-means++. SODA 2007.

    Example:
        >>> axes = np.repeat(np.eye(3), [4, 2, 1], axis=0)
        >>> fit_codewords(axes, 3)
        array([[1., 0., 0.],
               [0., 1., 0.],
               [0., 0., 1.]])
    """
    known = np.asarray(normals, np.float64)
    known = known[np.isfinite(known).all(1) & (known != 0).any(1)]
    known = known / np.linalg.norm(known, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    words = known[rng.integers(len(known), size=1)] if len(known) else known
    while len(words) < count:
        distance = 1 - (known @ words.T).max(1) if len(words) else np.zeros(0)
        distance[distance < 1e-9] = 0  # the same direction twice would be one codeword
        if not distance.any():
            raise ConfigurationError(
                f"fit_codewords: {count} codewords asked for, but there are only {len(words)} different normals. Give "
                "more normals, or fewer codewords."
            )
        candidates = known[rng.choice(len(known), 2 + int(math.log(count)), p=distance / distance.sum())]
        left = np.minimum(distance[:, None], 1 - known @ candidates.T).sum(0)
        words = np.concatenate([words, candidates[left.argmin()][None]])
    nearest = np.full(len(known), -1)
    for _ in range(_ITERATIONS):
        cosine = known @ words.T
        before, nearest = nearest, cosine.argmax(1)
        if np.array_equal(before, nearest):
            break
        for word in range(count):
            mine = known[nearest == word]
            direction = mine.sum(0) if len(mine) else known[cosine.max(1).argmin()]
            if length := np.linalg.norm(direction):
                words[word] = direction / length
    order = np.argsort(-np.bincount(nearest, minlength=count), kind="stable")
    fitted: np.ndarray = words[order]
    return fitted


def triangulate(codewords: np.ndarray) -> np.ndarray:
    """Delaunay triangulation on the sphere: triangles of codewords that tile the cone which the codewords span.

    On a sphere it is the convex hull. Faces with the centre of the sphere on them or outside of them close the hull on
    its far side; no direction of the cone goes through them, and they are left out.

    Args:
        codewords: Unit vectors.

    Shape:
        codewords: (K, 3). Returns (T, 3), indices.

    Raises:
        ConfigurationError: If two codewords are equal, or all lie in a plane.
    """
    try:
        hull = ConvexHull(codewords)
    except (QhullError, ValueError) as error:
        raise ConfigurationError(
            f"Codewords cannot be triangulated: {len(codewords)} directions that span no volume. Give at least four "
            "that do not lie in a plane."
        ) from error
    if len(hull.vertices) < len(codewords):
        raise ConfigurationError(
            f"Codewords cannot be triangulated: {len(codewords) - len(hull.vertices)} of {len(codewords)} are equal "
            "to others. Give different ones, or fit fewer."
        )
    triangles: np.ndarray = hull.simplices[hull.equations[:, 3] < -1e-9]
    return triangles


def resolved(codebook: int | str | Sequence[Sequence[float]]) -> list[list[float]]:
    """Codewords as plain numbers, whichever way they are given.

    Args:
        codebook: Their number, for `hemisphere_codewords`; a file that `densepred codebook` writes; or themselves.

    Shape:
        returns: K lists of three numbers.

    Raises:
        ConfigurationError: If they are not unit vectors, or there is no such file.
    """
    if isinstance(codebook, int):
        words = hemisphere_codewords(codebook).round(9).tolist()
    else:
        words = read_codewords(Path(codebook)) if isinstance(codebook, str) else [list(word) for word in codebook]
    lengths = [math.hypot(*word) for word in words]
    if not words or any(len(word) != 3 for word in words) or any(abs(length - 1) > 1e-3 for length in lengths):
        raise ConfigurationError(
            f"{KEY}: expected unit vectors (x, y, z), such as [[0, 0, -1], ...]; got {len(words)} of them, the first "
            f"{words[:1]}. `densepred codebook` fits and writes them."
        )
    return [[float(value) for value in word] for word in words]


def read_codewords(path: Path) -> list[list[float]]:
    """The codewords of a file.

    Raises:
        ConfigurationError: If there is no such file, or no codewords in it.
    """
    wanted = f"{KEY}: expected a file that `densepred codebook` writes"
    try:
        content = json.loads(path.expanduser().read_text(encoding="utf-8"))
        return [[float(value) for value in word] for word in content[KEY]]
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{wanted}, but there is no {path}. Write it with: densepred codebook --config CONFIG --output {path} "
            "(CONFIG being the run's own)."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{wanted}, but {path} is another one: {error!r}. Write it anew.") from error


def with_codewords_read(options: Any) -> Any:
    """The same configuration with files of codewords replaced by what they hold, so that it needs them no more.

    Args:
        options: Nested mappings and lists, as a configuration is made of; changed in place.

    Raises:
        ConfigurationError: As `read_codewords`.
    """
    if isinstance(options, list):
        for item in options:
            with_codewords_read(item)
    elif hasattr(options, "items"):
        # of jsonargparse's own mapping the names are whole paths
        for name, value in list(options.items()):
            if name.rpartition(".")[2] == KEY and isinstance(value, str):
                options[name] = resolved(value)
            else:
                with_codewords_read(value)
    return options
