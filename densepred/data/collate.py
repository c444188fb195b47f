"""Samples to a batch."""

import torch
from torch import Tensor
from torch.utils.data import default_collate

from densepred.errors import ConfigurationError
from densepred.sample import Kind, pad_planes

Sample = dict[str, Tensor | str]
PLANAR = {Kind.IMAGE, Kind.LABEL, Kind.DEPTH, Kind.NORMALS, Kind.WEIGHT}


class Collate:
    """Stacks samples to a batch; images of different sizes are padded right and bottom to the largest of them.

    The padding is "missing" (the image's: its own border), and `size` (B, 2) then holds the true sizes (height,
    width). In training it is an error instead: padding would spend memory and shift the statistics of batch norm.

    Args:
        kinds: What kind each key is.
        training: Whether different sizes are an error.

    Raises:
        ConfigurationError: If samples of one training batch differ in size, or in their keys.
    """

    def __init__(self, kinds: dict[str, Kind], training: bool = False) -> None:
        self.kinds = kinds
        self.training = training

    def __call__(self, samples: list[Sample]) -> dict[str, Tensor | list[str]]:
        """A list of samples to one batch."""
        self._refuse_different_keys(samples)
        sizes = [tuple(sample["image"].shape[-2:]) for sample in samples]  # type: ignore[union-attr]
        equal = len(set(sizes)) == 1
        if not equal and self.training:
            raise ConfigurationError(_different_sizes(samples, sizes))
        if not equal:
            largest = (max(height for height, _ in sizes), max(width for _, width in sizes))
            samples = [self._pad(sample, largest) for sample in samples]
        # in a worker, torch's own collate stacks straight into shared memory
        batch: dict[str, Tensor | list[str]] = {key: default_collate([s[key] for s in samples]) for key in samples[0]}
        return batch if equal else batch | {"size": torch.tensor(sizes)}

    def _pad(self, sample: Sample, size: tuple[int, int]) -> Sample:
        return {
            key: pad_planes(value, size, self.kinds[key])
            if isinstance(value, Tensor) and self.kinds[key] in PLANAR
            else value
            for key, value in sample.items()
        }

    def _refuse_different_keys(self, samples: list[Sample]) -> None:
        for sample in samples:
            if sample.keys() != samples[0].keys():
                raise ConfigurationError(
                    f"Samples of one batch must hold the same keys: {samples[0].get('name')!r} has "
                    f"{sorted(samples[0])}, {sample.get('name')!r} has {sorted(sample)}. Fill what is unknown with "
                    '"missing" (densepred.sample).'
                )


def _different_sizes(samples: list[Sample], sizes: list[tuple[int, ...]]) -> str:
    other = next(i for i, size in enumerate(sizes) if size != sizes[0])
    return (
        f"Training batches need images of one size: {samples[0].get('name')!r} is {sizes[0]} (height, width), "
        f"{samples[other].get('name')!r} is {sizes[other]}. Add a crop to train_transforms, such as "
        "densepred.data.transforms.ScaleCrop with its size, or set batch_size to 1."
    )
