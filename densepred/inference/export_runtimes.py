"""Exported files asked like networks: uint8 images in, answers by name out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.inference.checkpoint import load_network
from densepred.inference.evidence import NetworkEvidence
from densepred.inference.extra import needed
from densepred.network import DenseNetwork
from densepred.tasks.base import Task


class SizeRefusedError(ConfigurationError):
    """A file does not take images of that size."""


class Runtime(ABC):
    """Something that answers.

    Shape:
        image: (B, C, H, W), uint8, on the CPU; returns answers by name.
    """

    @abstractmethod
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Answers by name."""


class NetworkRuntime(Runtime):
    """The network itself, in PyTorch on the CPU.

    Args:
        network: In evaluation mode.
        tasks: What it predicts.
    """

    def __init__(self, network: DenseNetwork, tasks: Sequence[Task]) -> None:
        self.evidence = NetworkEvidence(network, tasks)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions by task name."""
        return self.evidence.predict(image)


class OnnxRuntime(Runtime):
    """An ONNX file in onnxruntime.

    Args:
        path: The file.
        threads: How many it may use; as many as PyTorch by default.

    Raises:
        ConfigurationError: If onnxruntime is missing.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        onnxruntime = needed("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # warnings about constants that it folds are not the user's
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Answers by name."""
        answers = self.session.run(self.outputs, {"image": image.numpy()})
        return {name: torch.from_numpy(answer) for name, answer in zip(self.outputs, answers, strict=True)}


class ProgramRuntime(Runtime):
    """A torch.export program.

    Args:
        path: The file (.pt2).

    Raises:
        SizeRefusedError: While it runs, where torch.export has left out a size, see `export_program`.
    """

    def __init__(self, path: str | Path) -> None:
        self.module: Any = torch.export.load(str(path)).module()

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Answers by name."""
        try:
            answers: dict[str, Tensor] = self.module(image)
        except (AssertionError, RuntimeError) as error:
            if "Guard" not in str(error):
                raise
            height, width = image.shape[-2:]
            raise SizeRefusedError(
                f"This program takes no images of {height} x {width}: torch.export has tied it to other sizes "
                f"({error}). Take the ONNX file, which is not."
            ) from error
        return answers


class SafetensorsRuntime(NetworkRuntime):
    """The network that a file of safetensors rebuilds.

    Args:
        path: The file.
        allow: See `load_network`.
    """

    def __init__(self, path: str | Path, allow: Sequence[str] = ()) -> None:
        super().__init__(*load_network(path, allow))
