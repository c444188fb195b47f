"""Predictor: a trained network for anyone's pictures."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from densepred.errors import ConfigurationError, DataError
from densepred.inference.checkpoint import load_network
from densepred.inference.evidence import Evidence, MeanEvidence, NetworkEvidence
from densepred.inference.options import InferenceOptions
from densepred.inference.photos import Photo, read_photo
from densepred.inference.prediction import Prediction
from densepred.inference.tiling import Tiled
from densepred.inference.trained_size import common_short_side
from densepred.inference.uncertainty import Uncertainty
from densepred.tasks.base import Task

One = str | Path | np.ndarray | Tensor | Image.Image


class Predictor:
    """Labels, metres and unit normals of pictures, at their own size.

    Args:
        evidence: What is asked: one network, several, with or without test-time augmentation.
        channels: Channels of the images that it takes.
        device: Where it runs.
        notes: What is done to every picture, for people.
        tiled: The same tile by tile, all that is done around the network within a tile: for `predict_large`.

    Example:
        >>> from densepred.decoders.unet import UNetDecoder
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> from densepred.network import DenseNetwork
        >>> from densepred.tasks.depth import Depth
        >>> network = DenseNetwork(ResNetEncoder("resnet18"), UNetDecoder, {"depth": 1}).eval()
        >>> predictor = Predictor(NetworkEvidence(network, [Depth()]))
        >>> predictor(np.zeros((40, 50), dtype=np.uint8))["depth"].shape
        torch.Size([1, 40, 50])
    """

    def __init__(
        self,
        evidence: Evidence,
        channels: int = 3,
        device: torch.device | str = "cpu",
        notes: tuple[str, ...] = (),
        tiled: Tiled | None = None,
    ) -> None:
        self.evidence = evidence
        self.channels = channels
        self.device = torch.device(device)
        self.notes = notes
        self.tiled = tiled

    @classmethod
    def load(
        cls,
        checkpoints: str | Path | Sequence[str | Path],
        device: torch.device | str | None = None,
        allow: Sequence[str] = (),
        options: InferenceOptions | None = None,
        as_trained: bool = True,
    ) -> Self:
        """A predictor of a checkpoint; of several, their mean.

        A run whose data bring pictures to a size of their own has learnt things at that size: photos are brought to
        the same shorter side, which the predictions' notes tell, and answers back to the photo's size.

        Args:
            checkpoints: A file, or several of the same tasks (an ensemble).
            device: Where it runs: a GPU where there is one, by default.
            allow: Packages or classes outside densepred, torch and torchvision that the checkpoints may name.
            options: How the network is asked: sizes and mirror images, samples of dropout, tiles, a shorter side.
            as_trained: Bring photos to the shorter side of the run's data, unless the options say a shorter side or
                tiles.

        Raises:
            ConfigurationError: If a file is no checkpoint of densepred, or names classes that are not allowed; if
                several were trained at different sizes.
        """
        files = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
        if not files:
            raise ConfigurationError("Predictor.load wants at least one checkpoint.")
        device = chosen_device(device)
        members = [NetworkEvidence(*load_network(file, allow)) for file in files]
        options = options or InferenceOptions()
        fitting = as_trained and options.short_side is None and options.tile is None
        return cls._with(members, device, options, common_short_side(files) if fitting else None)

    @classmethod
    def published(
        cls,
        name: str,
        device: torch.device | str | None = None,
        file: str | Path | None = None,
        options: InferenceOptions | None = None,
        as_trained: bool = True,
    ) -> Self:
        """A predictor of one of torchvision's published segmentation networks, see `load_published`.

        Args:
            name: Such as torchvision/deeplabv3_resnet50.
            device: Where it runs: a GPU where there is one, by default.
            file: The weights' file, where it is not in torch.hub's cache.
            options: How the network is asked.
            as_trained: Bring photos to the shorter side of 520 pixels of its publisher, unless the options say a
                shorter side or tiles.

        Raises:
            ConfigurationError: If there is no such network.
            WeightsError: If the weights are not there and cannot be downloaded.
        """
        from densepred.inference.published import load_published  # the packages of its parts, which others don't need

        network, tasks, short_side = load_published(name, file)
        options = options or InferenceOptions()
        fitting = as_trained and options.short_side is None and options.tile is None
        member = NetworkEvidence(network, tasks)
        return cls._with([member], chosen_device(device), options, short_side if fitting else None)

    @classmethod
    def _with(
        cls,
        members: Sequence[NetworkEvidence],
        device: torch.device,
        options: InferenceOptions,
        short_side: int | None,
    ) -> Self:
        for member in members:
            member.network.to(device)
            for task in member.tasks:
                task.to(device)
        notes: tuple[str, ...] = ()
        if short_side is not None:
            options = replace(options, short_side=short_side)
            notes = (f"seen at a shorter side of {short_side} pixels, as in training",)
        evidence = members[0] if len(members) == 1 else MeanEvidence(members)
        tiled = None
        if options.tile is not None and options.short_side is None:
            inner = replace(options, tile=None, overlap=None).applied(evidence)
            tiled = (
                Tiled(inner, options.tile) if options.overlap is None else Tiled(inner, options.tile, options.overlap)
            )
        return cls(options.applied(evidence), members[0].network.encoder.in_channels, device, notes, tiled)

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """A predictor of a DensePredictor in memory, which goes into evaluation mode."""
        module.eval()
        network: Any = module.network
        tasks: Any = module.tasks
        device = next(network.parameters()).device
        return cls(NetworkEvidence(network, list(tasks)), network.encoder.in_channels, device)

    @property
    def tasks(self) -> list[Task]:
        """What it predicts."""
        return self.evidence.tasks

    @overload
    def __call__(self, images: One, evidence: bool = False, uncertainty: bool = False) -> Prediction: ...
    @overload
    def __call__(
        self, images: list[Any] | tuple[Any, ...], evidence: bool = False, uncertainty: bool = False
    ) -> list[Prediction]: ...
    @overload
    def __call__(
        self, images: Iterator[Any], evidence: bool = False, uncertainty: bool = False
    ) -> Iterator[Prediction]: ...

    def __call__(self, images: Any, evidence: bool = False, uncertainty: bool = False) -> Any:
        """Predicts one image, or several.

        Args:
            images: A path, array (H, W, C), tensor (C, H, W) or Pillow image; a batch, an array (B, H, W, C) or tensor
                (B, C, H, W), or a list of images for a list of predictions; any other iterable for an iterator, which
                reads them one by one. A folder stands for its pictures, in the order of their names.
            evidence: Keep probabilities (and what else the answers are made of) too.
            uncertainty: Keep how sure the answers are too, see `Uncertainty`.

        Raises:
            DataError: If an image cannot be read or has other channels than the network takes; an iterator ends there.
                `densepred predict` skips such a file and lists it at the end.
        """
        if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
            images = list(images)
        if isinstance(images, bytes | bytearray | dict):
            raise DataError(
                f"Expected an image, several, or a path; got {type(images).__name__}. Of a file's content make a "
                "picture first: Image.open(io.BytesIO(content))."
            )
        if isinstance(images, str | Path) and os.path.isdir(Path(images).expanduser()):
            return self._each(pictures_in(Path(images).expanduser()), evidence, uncertainty)
        if isinstance(images, str | Path | np.ndarray | Tensor | Image.Image):
            return self.predict(read_photo(images, self.channels), evidence, uncertainty)
        if isinstance(images, list | tuple):
            return list(self._each(images, evidence, uncertainty))
        if isinstance(images, Iterable):
            return self._each(images, evidence, uncertainty)
        raise DataError(f"Expected an image, several, or a path; got {type(images).__name__}.")

    def predict(self, photo: Photo, evidence: bool = False, uncertainty: bool = False) -> Prediction:
        """Predicts a picture that was read already."""
        return self.predict_batch([photo], evidence, uncertainty)[0]

    @torch.inference_mode()
    def predict_batch(
        self, photos: Sequence[Photo], evidence: bool = False, uncertainty: bool = False
    ) -> list[Prediction]:
        """Predicts pictures of one size and kind of number, all at once."""
        images = torch.stack([photo.image for photo in photos]).to(self.device)
        spread: dict[str, dict[str, Tensor]] = {}
        found: dict[str, Tensor] = {}
        if uncertainty:
            measured = Uncertainty.of(self.evidence, images)
            found, spread = measured.evidence, measured.spread
        elif evidence:
            found = self.evidence(images)
        if found:
            values = {task.name: task.decide(found[task.name]) for task in self.tasks}
        else:
            values = self.evidence.predict(images)
        values, found = _on_cpu(values), _on_cpu(found) if evidence else {}
        spread = {name: _on_cpu(measures) for name, measures in spread.items()}
        return [
            Prediction(
                photo.image,
                {name: value[index] for name, value in values.items()},
                self.tasks,
                photo.name,
                (*photo.notes, *self.notes),
                {name: value[index] for name, value in found.items()},
                {name: {key: value[index] for key, value in part.items()} for name, part in spread.items()},
                photo.focal_on_film,
            )
            for index, photo in enumerate(photos)
        ]

    def _each(self, images: Iterable[Any], evidence: bool, uncertainty: bool) -> Iterator[Prediction]:
        for image in images:
            yield self.predict(read_photo(image, self.channels), evidence, uncertainty)


def chosen_device(name: torch.device | str | None) -> torch.device:
    """The device of that name; a GPU where there is one, by default.

    Raises:
        ConfigurationError: If there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigurationError(f"device {name}: {cause}. Expected cpu, cuda, cuda:1 or mps.") from error
    return device


def _on_cpu(planes: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in planes.items()}


PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
"""Endings of files that are pictures."""


def pictures_in(folder: Path) -> list[Path]:
    """The pictures right in a folder, in the order of their names.

    Raises:
        DataError: If there is none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())
    if not found:
        raise DataError(f"{folder} holds no picture: no file that ends in {', '.join(PICTURES)}.")
    return found
