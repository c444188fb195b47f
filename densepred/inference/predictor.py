"""Predictor: a trained network for anyone's pictures."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from densepred.errors import DataError
from densepred.inference.checkpoint import load_network
from densepred.inference.evidence import Evidence, MeanEvidence, NetworkEvidence
from densepred.inference.photos import Photo, read_photo
from densepred.inference.prediction import Prediction
from densepred.tasks.base import Task

One = str | Path | np.ndarray | Tensor | Image.Image


class Predictor:
    """Labels, metres and unit normals of pictures, at their own size.

    Args:
        evidence: What is asked: one network, several, with or without test-time augmentation.
        channels: Channels of the images that it takes.
        device: Where it runs.

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

    def __init__(self, evidence: Evidence, channels: int = 3, device: torch.device | str = "cpu") -> None:
        self.evidence = evidence
        self.channels = channels
        self.device = torch.device(device)

    @classmethod
    def load(
        cls,
        checkpoints: str | Path | Sequence[str | Path],
        device: torch.device | str | None = None,
        allow: Sequence[str] = (),
    ) -> Self:
        """A predictor of a checkpoint; of several, their mean.

        Args:
            checkpoints: A file, or several of the same tasks (an ensemble).
            device: Where it runs: a GPU where there is one, by default.
            allow: Packages or classes outside densepred, torch and torchvision that the checkpoints may name.

        Raises:
            ConfigurationError: If a file is no checkpoint of densepred, or names classes that are not allowed.
        """
        files = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        members: list[NetworkEvidence] = []
        for file in files:
            network, tasks = load_network(file, allow)
            for task in tasks:
                task.to(device)
            members.append(NetworkEvidence(network.to(device), tasks))
        evidence = members[0] if len(members) == 1 else MeanEvidence(members)
        return cls(evidence, members[0].network.encoder.in_channels, device)

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
    def __call__(self, images: One, evidence: bool = False) -> Prediction: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], evidence: bool = False) -> list[Prediction]: ...
    @overload
    def __call__(self, images: Iterator[Any], evidence: bool = False) -> Iterator[Prediction]: ...

    def __call__(self, images: Any, evidence: bool = False) -> Any:
        """Predicts one image, or several.

        Args:
            images: A path, array (H, W, C), tensor (C, H, W) or Pillow image; a batch (B, C, H, W) or a list of images
                for a list of predictions; any other iterable for an iterator, which reads them one by one. A folder
                stands for its pictures, in the order of their names.
            evidence: Keep probabilities (and what else the answers are made of) too.

        Raises:
            DataError: If an image cannot be read or has other channels than the network takes.
        """
        if isinstance(images, Tensor) and images.ndim == 4:
            return [self.predict(read_photo(image, self.channels), evidence) for image in images]
        if isinstance(images, str | Path) and Path(images).expanduser().is_dir():
            return self._each(pictures_in(Path(images).expanduser()), evidence)
        if isinstance(images, str | Path | np.ndarray | Tensor | Image.Image):
            return self.predict(read_photo(images, self.channels), evidence)
        if isinstance(images, list | tuple):
            return list(self._each(images, evidence))
        if isinstance(images, Iterable):
            return self._each(images, evidence)
        raise DataError(f"Expected an image, several, or a path; got {type(images).__name__}.")

    @torch.inference_mode()
    def predict(self, photo: Photo, evidence: bool = False) -> Prediction:
        """Predicts a picture that was read already."""
        image = photo.image[None].to(self.device)
        if evidence:
            found = self.evidence(image)
            values = {task.name: task.decide(found[task.name]) for task in self.tasks}
        else:
            found, values = {}, self.evidence.predict(image)
        return Prediction(
            photo.image,
            {name: value[0].cpu() for name, value in values.items()},
            self.tasks,
            photo.name,
            photo.notes,
            {name: value[0].cpu() for name, value in found.items()},
        )

    def _each(self, images: Iterable[Any], evidence: bool) -> Iterator[Prediction]:
        for image in images:
            yield self.predict(read_photo(image, self.channels), evidence)


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
