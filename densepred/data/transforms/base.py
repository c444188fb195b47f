"""What every transform of ours promises: all targets of the sample follow the image, by one draw."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import albumentations as A

from densepred.data.transforms.resampling import Planes
from densepred.errors import ConfigurationError
from densepred.sample import Kind

MOVED = (Kind.IMAGE, Kind.LABEL, Kind.DEPTH, Kind.NORMALS, Kind.WEIGHT, Kind.INTRINSICS)


class Move(Protocol):
    """What one draw does to an array of each kind."""

    def __call__(self, kind: Kind, planes: Planes) -> Planes:
        """The array after the transform."""


class SceneTransform(A.DualTransform):  # type: ignore[misc]  # albumentations is untyped
    """An albumentations transform under which every kind of the sample keeps its meaning.

    A subclass writes `draw`: it takes its random numbers once and returns what they do to each kind, mostly a
    `densepred.data.transforms.view.View`. The targets are the kinds' names (and `mask`, for labels, so that it also
    works in a plain `albumentations.Compose`); `SampleTransforms` maps the sample's keys to them.

    Args:
        p: Probability that it is applied.
    """

    def __init__(self, p: float = 1.0) -> None:
        if not 0 <= p <= 1:
            raise ConfigurationError(f"{type(self).__name__}: p is {p}; expected a probability from 0 to 1.")
        super().__init__(p)

    @abstractmethod
    def draw(self, size: tuple[int, int], data: dict[str, Any]) -> Move:
        """The move for a picture of this (height, width); random numbers come from `self.py_random`."""

    @property
    def targets(self) -> dict[str, Callable[..., Any]]:
        """The function for each kind of target."""
        moves: dict[str, Callable[..., Any]] = {kind.value: partial(_apply, kind) for kind in MOVED}
        return moves | {"mask": moves[Kind.LABEL.value]}

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws once for all targets."""
        return {"move": self.draw(params["shape"][:2], data)}

    def first(self, kind: Kind, data: dict[str, Any]) -> Planes | None:
        """The first target of this kind in the sample, or None."""
        for key, value in data.items():
            if self._additional_targets.get(key, key) == kind.value and value is not None:
                found: Planes = value
                return found
        return None


def _apply(kind: Kind, planes: Planes, *, move: Move, **params: Any) -> Planes:
    return move(kind, planes)


def checked_size(size: tuple[int, int], owner: str) -> tuple[int, int]:
    """A (height, width) of at least one pixel each; a list, as a config gives it, will do."""
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ConfigurationError(f"{owner}: size is {size}; expected [height, width] in pixels, both at least 1.")
    return size[0], size[1]
