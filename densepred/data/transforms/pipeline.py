"""The pipeline of a dataset: what a user configures, applied to a whole sample by one draw."""

import copy
import random
from typing import Any, TypeAlias

import albumentations as A
import numpy as np

from densepred.data.memory import keep_memory
from densepred.data.transforms.accepted import check_pipeline
from densepred.data.transforms.resampling import Planes
from densepred.errors import ConfigurationError, DataError
from densepred.sample import SAMPLE_KINDS, Kind

Pipeline: TypeAlias = A.Compose | list[A.BasicTransform | A.BaseCompose] | None
"""What a user configures: an albumentations Compose, a list of transforms, or none."""

Sample = dict[str, Any]

DIMENSIONS = {Kind.IMAGE: 3, Kind.LABEL: 2, Kind.DEPTH: 2, Kind.NORMALS: 3, Kind.WEIGHT: 2}


class SampleTransforms:
    """Applies a pipeline to a sample: every key moves with the image, by the same draw.

    The pipeline is copied, so the same one may serve several datasets. All its random numbers come from one stream,
    seeded anew at every call; without a seed that is taken from Python's `random`, which `seed_everything` and the
    loader's workers seed.

    Args:
        pipeline: An albumentations `Compose`, or a list of transforms: ours and photometric ones of albumentations.
        kinds: What kind each key of the sample is. Every key must have one, keys may be absent.

    Call:
        sample: Arrays: image (H, W, C) uint8 or float32, labels (H, W) uint8 or int32, depth (H, W), normals (H, W, 3),
            weights (H, W) float32, intrinsics (3, 3); and `name`, for errors.
        seed: Non-negative numbers, such as (seed, epoch, index); the same numbers give the same draw, others another.
        returns: a new dict with the same keys, arrays again (of `ToTensorV2`'s work nothing is left).

    Raises:
        ConfigurationError: If a transform of the pipeline would leave a target behind.
        DataError: On a call, if a key has no kind, or its array another size than the image.

    Example:
        >>> from densepred.data.transforms import PadTo
        >>> sample = {"image": np.zeros((2, 3, 3), np.uint8), "segmentation": np.zeros((2, 3), np.uint8)}
        >>> SampleTransforms([PadTo(size=(2, 4))])(sample)["segmentation"].tolist()
        [[0, 0, 0, 255], [0, 0, 0, 255]]
    """

    def __init__(self, pipeline: Pipeline = None, kinds: dict[str, Kind] = SAMPLE_KINDS) -> None:
        self.kinds = {key: Kind(kind) for key, kind in kinds.items()}
        if not isinstance(pipeline, A.BaseCompose | list | tuple | None):
            raise ConfigurationError(
                f"transforms: {type(pipeline).__name__} given; expected an albumentations Compose or a list of "
                "transforms."
            )
        if isinstance(pipeline, A.BaseCompose):
            check_pipeline(pipeline, "transforms")
        else:
            for index, step in enumerate(pipeline or ()):
                check_pipeline(step, f"transforms[{index}]")
        steps = pipeline if isinstance(pipeline, A.BaseCompose) else A.Compose(list(pipeline or ()))
        targets = {key: kind.value for key, kind in self.kinds.items() if kind is not Kind.NAME}
        # a copy: targets and random state are set on every transform inside. A Compose around it: a strict one would
        # refuse keys, such as the name, that no transform of its own knows
        self.pipeline = A.Compose([copy.deepcopy(steps)], additional_targets=targets, is_check_shapes=False)

    def __call__(self, sample: Sample, seed: tuple[int, ...] | None = None) -> Sample:
        """The sample after the pipeline."""
        keep_memory()
        sample = self._checked(sample)
        # a child of its own: data that are made from the same numbers, as rooms are, draw from the parent
        entropy = np.random.SeedSequence(random.getrandbits(128) if seed is None else seed, spawn_key=(0,))
        numbers = np.random.default_rng(entropy)
        # one stream for all: seeded by albumentations, every transform would draw the same numbers as its neighbour
        self.pipeline.set_random_state(numbers, random.Random(int(numbers.integers(2**63))))
        result: Sample = self.pipeline(**sample)
        if not isinstance(result["image"], np.ndarray):
            result["image"] = np.ascontiguousarray(result["image"].permute(1, 2, 0).numpy())
        return result

    def __repr__(self) -> str:
        return f"SampleTransforms({self.pipeline!r})"

    def _checked(self, sample: Sample) -> Sample:
        """A new sample whose arrays all have the image's size and whose labels can hold "missing"."""
        where = f"Sample {sample.get('name', '(unnamed)')!r}"
        if "image" not in sample:
            raise DataError(f"{where} has no image; its keys are {sorted(sample)}. Every sample needs one.")
        size = sample["image"].shape[:2]
        checked: Sample = {}
        for key, value in sample.items():
            if key not in self.kinds:
                raise DataError(
                    f"{where}: key {key!r} has no kind, so nothing says how it moves with the image. "
                    f"Declare it in `kinds` as one of {', '.join(Kind)}."
                )
            kind = self.kinds[key]
            if kind in DIMENSIONS and value is not None:
                _check_shape(f"{where}: {key}", value, DIMENSIONS[kind], size)
            checked[key] = _label(f"{where}: {key}", value) if kind is Kind.LABEL else value
        return checked


def _check_shape(what: str, planes: Planes, dimensions: int, size: tuple[int, int]) -> None:
    if planes.ndim != dimensions or planes.shape[:2] != size:
        expected = f"{size[0]} x {size[1]}" + (" x C" if dimensions == 3 else "")
        raise DataError(
            f"{what} has the shape {' x '.join(map(str, planes.shape))}; expected {expected}, the image's "
            "height and width. Check that both files belong together."
        )


def _label(what: str, label: Planes) -> Planes:
    if label is None or label.dtype in (np.uint8, np.int32):
        return label
    if label.dtype.kind not in "iub":
        raise DataError(f"{what} is {label.dtype}; expected class indices, uint8 (255 missing) or int32 (-1 missing).")
    # an unsigned type of 16 bits has no value for "missing"
    return label.astype(np.int32)
