"""The table of parameters in experiments/README.md: every count in it is counted here."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from densepred.decoders.aspp import ASPPDecoder
from densepred.decoders.context import ContextDecoder
from densepred.decoders.deconvnet import DeconvNetDecoder
from densepred.decoders.deeplab import DeepLabV3Decoder, TorchvisionDeepLabV3Decoder
from densepred.decoders.deeplab_plus import DeepLabV3PlusDecoder
from densepred.decoders.eigen import EigenDecoder
from densepred.decoders.fcn import FCNDecoder, TorchvisionFCNDecoder
from densepred.decoders.gridnet import GridNetDecoder
from densepred.decoders.largefov import LargeFOVDecoder
from densepred.decoders.patches import PatchDecoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.decoders.segnet import SegNetBasicDecoder, SegNetDecoder
from densepred.decoders.tiramisu import TiramisuDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.eigen import EigenEncoder
from densepred.encoders.fabric import FabricEncoder
from densepred.encoders.fcdensenet import FCDenseNetEncoder
from densepred.encoders.frrn import FRRNEncoder
from densepred.encoders.gridnet import GridNetEncoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.segnet import SegNetBasicEncoder
from densepred.encoders.unet import UNetEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.encoders.vgg_deeplab import DeepLabVGGEncoder
from densepred.encoders.vgg_dilated import DilatedVGGEncoder
from densepred.encoders.vgg_fcn import FCNVGGEncoder
from densepred.encoders.wang import WangGlobalEncoder, WangLocalEncoder
from densepred.features import FeatureSpec
from densepred.network import DenseNetwork
from densepred.refine.crf_rnn import CRFAsRNN

README = Path(__file__).parents[1] / "experiments" / "README.md"
ROW = re.compile(r"^\| ([^|]+?) \| ([\d,.]+ ?M?) \| ([\d,]+) \| (\d+) \| ", re.MULTILINE)

unet = partial(UNetDecoder, widths=(512, 256, 128, 64), upsampling="transposed", norm="none")


def depth_and_normals(spec: FeatureSpec, planes: int) -> EigenDecoder:
    decoder = EigenDecoder(spec, planes)
    decoder.divide({"depth": 1, "normals": 3})
    return decoder


def tiramisu(name: str):
    return partial(FCDenseNetEncoder, name), partial(TiramisuDecoder, name=name)


NETWORKS = {
    "FCN-32s": (FCNVGGEncoder, partial(FCNDecoder, finest_stride=32)),
    "FCN-16s": (FCNVGGEncoder, partial(FCNDecoder, finest_stride=16)),
    "FCN-8s": (FCNVGGEncoder, partial(FCNDecoder, finest_stride=8)),
    "CRF-RNN on FCN-8s": (FCNVGGEncoder, partial(FCNDecoder, finest_stride=8), CRFAsRNN),
    "FCN on ResNet-50 (torchvision)": (partial(ResNetEncoder, "resnet50", output_stride=8), TorchvisionFCNDecoder),
    "DeconvNet": (partial(VGGEncoder, "vgg16_bn"), DeconvNetDecoder),
    "SegNet": (partial(VGGEncoder, "vgg16_bn"), SegNetDecoder),
    "SegNet-Basic": (SegNetBasicEncoder, SegNetBasicDecoder),
    "DeepLab v1 LargeFOV": (DeepLabVGGEncoder, LargeFOVDecoder),
    "DeepLab v2 on VGG-16": (DeepLabVGGEncoder, partial(ASPPDecoder, width=1024)),
    "DeepLab v2 on ResNet-101": (partial(ResNetEncoder, "resnet101", output_stride=8), ASPPDecoder),
    "DeepLab v3 on ResNet-50": (partial(ResNetEncoder, "resnet50", output_stride=16), DeepLabV3Decoder),
    "DeepLab v3 on ResNet-101": (partial(ResNetEncoder, "resnet101", output_stride=16), DeepLabV3Decoder),
    "DeepLab v3 on ResNet-50 (torchvision)": (
        partial(ResNetEncoder, "resnet50", output_stride=8),
        TorchvisionDeepLabV3Decoder,
    ),
    "DeepLab v3+ on ResNet-50": (partial(ResNetEncoder, "resnet50", output_stride=16), DeepLabV3PlusDecoder),
    "DeepLab v3+ on ResNet-101": (partial(ResNetEncoder, "resnet101", output_stride=16), DeepLabV3PlusDecoder),
    "Dilated front-end": (DilatedVGGEncoder, partial(ContextDecoder, context=None)),
    "Dilation8, large context": (DilatedVGGEncoder, partial(ContextDecoder, context="large")),
    "Dilation8, basic context": (DilatedVGGEncoder, partial(ContextDecoder, context="basic")),
    "U-Net": (partial(UNetEncoder, in_channels=1, padded=False, norm="none"), unet),
    "FC-DenseNet56": tiramisu("fc_densenet56"),
    "FC-DenseNet67": tiramisu("fc_densenet67"),
    "FC-DenseNet103": tiramisu("fc_densenet103"),
    "Eigen and Fergus on VGG-16": (EigenEncoder, depth_and_normals),
    "Eigen and Fergus on AlexNet": (partial(EigenEncoder, "alexnet"), depth_and_normals),
    "Wang et al., global": (WangGlobalEncoder, partial(PatchDecoder, cells=20)),
    "Wang et al., layout": (WangGlobalEncoder, partial(PatchDecoder, single=(300,))),
    "Wang et al., local": (WangLocalEncoder, partial(PatchDecoder, cells=13, hidden=4096)),
    "Wang et al., edges": (WangLocalEncoder, partial(PatchDecoder, hidden=4096, single=(37,))),
    "Wang et al., fusion of 9 channels": (
        partial(WangLocalEncoder, 9),
        partial(PatchDecoder, cells=13, hidden=4096),
    ),
    "Wang et al., fusion of 18 channels": (
        partial(WangLocalEncoder, 18),
        partial(PatchDecoder, cells=13, hidden=4096),
    ),
    "FRRN A": (partial(FRRNEncoder, "frrn_a"), PointwiseDecoder),
    "FRRN B": (partial(FRRNEncoder, "frrn_b"), PointwiseDecoder),
    "GridNet": (GridNetEncoder, GridNetDecoder),
    "Convolutional neural fabric, 8 x 9 x 64": (FabricEncoder, PointwiseDecoder),
}


def rows() -> dict[str, tuple[str, int, int]]:
    """Rows of the section of parameters; other tables of the file may look alike."""
    _, _, section = README.read_text().partition("\n## Parameters, against the published\n")
    section, _, _ = section.partition("\n## ")
    return {name: (given, int(ours.replace(",", "")), int(classes))
            for name, given, ours, classes in ROW.findall(section)}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_holds_what_is_counted(name):
    given, ours, classes = rows()[name]
    encoder, decoder, *refine = NETWORKS[name]
    with torch.device("meta"):
        refiner = refine[0](classes) if refine else None
        network = DenseNetwork(encoder(), decoder, {"segmentation": classes}, refine=refiner)
    assert sum(p.numel() for p in network.parameters()) == ours
    if "M" in given:  # rounded by its authors
        digits = len(given.removesuffix(" M").partition(".")[2])
        same = round(ours / 1e6, digits) == float(given.removesuffix(" M"))
        # the two that are known not to match, for reasons the table tells
        assert same != (name in ("FC-DenseNet56", "FC-DenseNet103", "SegNet-Basic"))
    else:
        assert int(given.replace(",", "")) == ours


def test_the_table_has_no_other_rows():
    assert set(rows()) == set(NETWORKS)
