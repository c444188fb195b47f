"""torchvision's published segmentation networks, ready to predict the classes of Pascal VOC without any training."""

from pathlib import Path
from typing import NamedTuple

from torchvision.models import get_model_weights

from densepred.data.devkit import VOC_CLASSES
from densepred.decoders.base import Decoder
from densepred.decoders.deeplab import TorchvisionDeepLabV3Decoder
from densepred.decoders.fcn import TorchvisionFCNDecoder
from densepred.encoders.resnet import ResNetEncoder, ResNetName
from densepred.encoders.weights import torchvision_file
from densepred.errors import ConfigurationError
from densepred.network import DenseNetwork
from densepred.tasks.base import Task
from densepred.tasks.segmentation import Segmentation
from densepred.torchvision_weights import load_torchvision_segmentation

_VERSION = "COCO_WITH_VOC_LABELS_V1"
_PARTS: dict[str, tuple[ResNetName, type[Decoder]]] = {
    "torchvision/fcn_resnet50": ("resnet50", TorchvisionFCNDecoder),
    "torchvision/fcn_resnet101": ("resnet101", TorchvisionFCNDecoder),
    "torchvision/deeplabv3_resnet50": ("resnet50", TorchvisionDeepLabV3Decoder),
    "torchvision/deeplabv3_resnet101": ("resnet101", TorchvisionDeepLabV3Decoder),
}
PUBLISHED = tuple(_PARTS)
"""The names that `load_published` knows."""


class Published(NamedTuple):
    """A published network.

    Args:
        network: With its weights, in evaluation mode.
        tasks: The labels of Pascal VOC.
        short_side: The shorter side, in pixels, to which its publisher brings pictures.
    """

    network: DenseNetwork
    tasks: list[Task]
    short_side: int


def load_published(name: str, file: str | Path | None = None) -> Published:
    """A network by torchvision's name, with the weights that torchvision publishes: COCO images with VOC's labels.

    The file is downloaded into torch.hub's cache (TORCH_HOME moves it) once, and checked against the hash in its name.

    Args:
        name: One of `PUBLISHED`.
        file: The weights' file, where it is elsewhere.

    Raises:
        ConfigurationError: If the name is none of them.
        WeightsError: If the file is not there and cannot be downloaded, or does not fit.

    Reference:
        Shelhamer, Long, Darrell. Fully Convolutional Networks for Semantic Segmentation. TPAMI 2017. arXiv:1605.06211.
        Chen, Papandreou, Schroff, Adam. Rethinking Atrous Convolution for Semantic Image Segmentation. 2017.
        arXiv:1706.05587.
    """
    if name not in PUBLISHED:
        raise ConfigurationError(f"--weights {name}: expected one of {', '.join(PUBLISHED)}.")
    model = name.rpartition("/")[2]
    if file is None:
        file = torchvision_file(model, _VERSION, f"The weights {name}", f"say where it is: {name}=FILE")
    encoder, decoder = _PARTS[name]
    task = Segmentation(VOC_CLASSES)
    network = DenseNetwork(ResNetEncoder(encoder, output_stride=8), decoder, {task.name: task.out_channels})
    load_torchvision_segmentation(network, file)
    published = get_model_weights(model)[_VERSION]
    return Published(network.eval(), [task], int(published.transforms.keywords["resize_size"]))
