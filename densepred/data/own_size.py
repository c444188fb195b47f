"""Samples at their own size: a pipeline without its resizing, which whoever asks the network then does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import albumentations as A

from densepred.data.transforms.base import SceneTransform
from densepred.data.transforms.pipeline import SampleTransforms
from densepred.data.transforms.resize import PadTo, Rescale
from densepred.errors import ConfigurationError

Size = tuple[int, int]


@dataclass(frozen=True)
class OwnSize:
    """A pipeline in two: what is still done to samples, and at which size networks saw them.

    Args:
        transforms: What is done to samples still; none where nothing is.
        seen: The (height, width) at which the whole pipeline shows an image of a (height, width).
        resizing: The transforms that were taken out, in words.
    """

    transforms: SampleTransforms | None
    seen: Callable[[Size], Size]
    resizing: tuple[str, ...]


def at_own_size(transforms: SampleTransforms | None) -> OwnSize:
    """A pipeline without `Rescale` and `PadTo`, so that images and labels keep the size they are stored at.

    Raises:
        ConfigurationError: If it crops or moves the scene otherwise, or resizes by chance: what is then left to be
            scored is no longer what is stored.

    Example:
        >>> own = at_own_size(SampleTransforms([Rescale(short_side=160)]))
        >>> own.transforms, own.seen((320, 500)), own.resizing
        (None, (160, 250), ('Rescale(short_side=160)',))
    """
    if transforms is None:
        return OwnSize(None, lambda size: size, ())
    leaves = list(_leaves(transforms.pipeline))
    refused = [
        type(leaf).__name__
        for leaf, by_chance in leaves
        if isinstance(leaf, SceneTransform) and (by_chance or not isinstance(leaf, Rescale | PadTo))
    ]
    if refused:
        raise ConfigurationError(
            f"eval_transforms: {', '.join(refused)} changes which pixels are scored, or by chance. Scores at the size "
            "that labels are stored at allow Rescale and PadTo (both with p 1, not inside OneOf) beside photometric "
            "transforms; leave the others out."
        )
    resized = [leaf for leaf, _ in leaves if isinstance(leaf, Rescale)]
    kept = [leaf for leaf, _ in leaves if not isinstance(leaf, SceneTransform)]

    def seen(size: Size) -> Size:
        for leaf in resized:
            size = leaf.resized(size)
        return size

    return OwnSize(SampleTransforms(kept, transforms.kinds) if kept else None, seen, tuple(map(_words, resized)))


def _leaves(node: A.BasicTransform | A.BaseCompose, by_chance: bool = False) -> Iterator[tuple[A.BasicTransform, bool]]:
    """Each transform, and whether chance decides on it."""
    by_chance = by_chance or node.p < 1
    if isinstance(node, A.BaseCompose):
        in_turn = isinstance(node, A.Compose | A.Sequential)
        for child in node.transforms:
            yield from _leaves(child, by_chance or not in_turn)
    else:
        yield node, by_chance


def _words(rescale: Rescale) -> str:
    given = {"size": rescale.size, "short_side": rescale.short_side, "factor": rescale.factor}
    told = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
    return f"Rescale({told})"
