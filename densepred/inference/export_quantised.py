"""ONNX files in 8 bits: smaller, often faster, and a little less exact."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from densepred.data.atomic import whole_file
from densepred.errors import ConfigurationError
from densepred.inference.extra import needed
from densepred.inference.onnx_file import quiet

Int8 = Literal["dynamic", "static"]

_LAYERS = ["Conv", "MatMul", "Gemm"]
"""What has weights; what lies between stays in float32, where it costs little and errors would add up."""


def quantise(source: Path, path: Path, mode: Int8, images: Sequence[Tensor] = ()) -> None:
    """Writes an ONNX file whose convolutions and linear layers compute in 8 bits, weights by output channel.

    Args:
        source: The file in float32.
        path: The new file; it is written whole or not at all.
        mode: "dynamic": the range of what a layer takes is looked up while it runs, image by image. "static": it is
            measured once, on `images`; faster, and as good as the images are typical.
        images: Of which ranges are measured, (C, H, W), uint8.

    Raises:
        ConfigurationError: If onnxruntime is missing or refuses the network, or static has no images.
    """
    quantization = needed("onnxruntime.quantization")
    if mode == "static" and not images:
        raise ConfigurationError(
            "--int8 static measures ranges on typical images, and there are none. Give --images or --data, or take "
            "--int8 dynamic."
        )
    with whole_file(path) as temporary, quiet():
        try:
            if mode == "dynamic":
                # signed weights would need an operator for convolutions that onnxruntime has not
                quantization.quantize_dynamic(
                    source, temporary, op_types_to_quantize=_LAYERS, weight_type=quantization.QuantType.QUInt8
                )
            else:
                quantization.quantize_static(
                    source, temporary, _Images(images), op_types_to_quantize=_LAYERS, per_channel=True
                )
            needed("onnxruntime").InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        except Exception as error:  # it raises anything
            raise ConfigurationError(
                f"onnxruntime cannot compute this network in 8 bits ({mode}): {type(error).__name__}: {error}"
            ) from error


class _Images:
    """What onnxruntime calls a calibration data reader."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._left: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        image = next(self._left, None)
        return None if image is None else {"image": image[None].numpy()}
