"""Every encoder and every decoder, small; which pairs of them cannot work; and what their contract is tested with."""

import itertools
from functools import lru_cache, partial

import pytest
import torch
from torch import Tensor, nn

from densepred.decoders.anytime import AnytimeDecoder
from densepred.decoders.aspp import ASPPDecoder
from densepred.decoders.context import ContextDecoder
from densepred.decoders.deconvnet import DeconvNetDecoder
from densepred.decoders.deeplab import DeepLabV3Decoder, TorchvisionDeepLabV3Decoder
from densepred.decoders.deeplab_plus import DeepLabV3PlusDecoder
from densepred.decoders.dpt import DPTDecoder
from densepred.decoders.eigen import EigenDecoder
from densepred.decoders.fcn import FCNDecoder, TorchvisionFCNDecoder
from densepred.decoders.fpn import FPNDecoder
from densepred.decoders.gridnet import GridNetDecoder
from densepred.decoders.largefov import LargeFOVDecoder
from densepred.decoders.patches import PatchDecoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.decoders.pspnet import PSPNetDecoder
from densepred.decoders.segformer import SegFormerDecoder
from densepred.decoders.segnet import SegNetBasicDecoder, SegNetDecoder
from densepred.decoders.tiramisu import TiramisuDecoder
from densepred.decoders.transposed import TransposedConvDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.decoders.upernet import UPerNetDecoder
from densepred.encoders.base import Encoder
from densepred.encoders.eigen import EigenEncoder
from densepred.encoders.fabric import FabricEncoder
from densepred.encoders.fcdensenet import FCDenseNetEncoder
from densepred.encoders.frrn import FRRNEncoder
from densepred.encoders.fusion import FusionEncoder, NormalsPrior
from densepred.encoders.gridnet import GridNetEncoder
from densepred.encoders.msdnet import MSDNetEncoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.segnet import SegNetBasicEncoder
from densepred.encoders.timm import TimmEncoder
from densepred.encoders.torchvision import TorchvisionEncoder
from densepred.encoders.unet import UNetEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.encoders.vgg_deeplab import DeepLabVGGEncoder
from densepred.encoders.vgg_dilated import DilatedVGGEncoder
from densepred.encoders.vgg_fcn import FCNVGGEncoder
from densepred.encoders.wang import WangGlobalEncoder, WangLocalEncoder
from densepred.features import FeatureSpec
from densepred.half_precision import computes_bfloat16
from densepred.network import DenseNetwork

needs_bfloat16 = pytest.mark.skipif(
    not computes_bfloat16("cpu"), reason="this processor has no arithmetic for bfloat16, and would take hours"
)

SMALL_DENSENET = {"layers": (1, 1, 1, 1, 1), "bottleneck": 2, "growth": 4, "first": 8}

FEW = (4, 6, 8, 4)


def fusion(in_channels: int = 3) -> FusionEncoder:
    """What a global network says, and the image, seen in windows."""
    prior = NormalsPrior(WangGlobalEncoder(in_channels, FEW), partial(PatchDecoder, cells=4), codebook=8)
    return FusionEncoder(WangLocalEncoder(in_channels + 3, FEW), [prior], in_channels)


ENCODERS = {
    "resnet18": partial(ResNetEncoder, "resnet18"),
    "resnet18 OS16": partial(ResNetEncoder, "resnet18", output_stride=16),
    "resnet50 OS8": partial(ResNetEncoder, "resnet50", output_stride=8),
    "vgg11 conv": partial(VGGEncoder, "vgg11"),
    "vgg11_bn pool": partial(VGGEncoder, "vgg11_bn", maps="pool"),
    "vgg11 pool OS8": partial(VGGEncoder, "vgg11", maps="pool", output_stride=8),
    "vgg11 conv fc": partial(VGGEncoder, "vgg11", fully_connected=True),
    "vgg11 pool fc": partial(VGGEncoder, "vgg11", maps="pool", fully_connected=True),
    "fcn vgg11": partial(FCNVGGEncoder, "vgg11"),
    "deeplab vgg11": partial(DeepLabVGGEncoder, "vgg11"),
    "dilated vgg11": partial(DilatedVGGEncoder, "vgg11"),
    "unet": partial(UNetEncoder, widths=(4, 8, 12, 16, 24)),
    "unet unpadded": partial(UNetEncoder, widths=(4, 8, 12, 16, 24), padded=False, norm="none"),
    "fc-densenet": partial(FCDenseNetEncoder, **SMALL_DENSENET),
    "fc-densenet unpadded": partial(FCDenseNetEncoder, **SMALL_DENSENET, padded=False),
    "frrn": partial(FRRNEncoder, "frrn_a", width=4, residual=4),
    "gridnet": partial(GridNetEncoder, widths=(4, 6, 8, 8)),
    "fabric": partial(FabricEncoder, layers=3, scales=4, channels=8),
    "fabric sparse": partial(FabricEncoder, layers=3, scales=4, channels=8, kind="sparse"),
    "fabric budget": partial(FabricEncoder, layers=3, scales=4, channels=8, budget=0.5),
    "msdnet": partial(MSDNetEncoder, blocks=(2, 1), growth=4, width=4),
    "segnet basic": partial(SegNetBasicEncoder, width=8),
    "squeezenet1_1": partial(TorchvisionEncoder, "squeezenet1_1"),
    "alexnet": partial(TorchvisionEncoder, "alexnet"),
    "googlenet": partial(TorchvisionEncoder, "googlenet"),
    "densenet121": partial(TorchvisionEncoder, "densenet121"),
    "convnext_tiny": partial(TorchvisionEncoder, "convnext_tiny"),
    "mobilenet_v3_small": partial(TorchvisionEncoder, "mobilenet_v3_small"),
    "efficientnet_b0 OS16": partial(TorchvisionEncoder, "efficientnet_b0", output_stride=16),
    "eigen": partial(EigenEncoder, "alexnet", hidden=8, channels=8, canvas=(72, 72)),
    "timm resnet": partial(TimmEncoder, "resnet10t"),
    "timm vit": partial(TimmEncoder, "vit_tiny_patch16_224"),
    "wang global": partial(WangGlobalEncoder, widths=FEW),
    "wang local": partial(WangLocalEncoder, widths=FEW),
    "wang fusion": partial(fusion),
}

# a cell of their one map describes a patch of 13 pixels, or the whole image: planes of another number of cells cover
# the image, but not by a stride
PATCHES = ("wang global", "wang local", "wang fusion")


def one_a_map(spec: FeatureSpec) -> tuple[int, ...]:
    return (1,) * len(spec.strides)


DECODERS = {
    "FCN-8s": FCNDecoder,
    "FCN-16s learned": partial(FCNDecoder, finest_stride=16, upsampling="learned"),
    "FCN-32s": partial(FCNDecoder, finest_stride=32),
    "FCN to image": partial(FCNDecoder, finest_stride=32, upsample_to_image=True),
    "FCN torchvision": TorchvisionFCNDecoder,
    "transposed": partial(TransposedConvDecoder, widths=(8, 8, 8)),
    "resize-convolve": partial(TransposedConvDecoder, widths=(8, 8, 8), upsampling="resize"),
    "pixel shuffle": partial(TransposedConvDecoder, widths=(8, 8, 8), upsampling="pixel_shuffle"),
    "DeconvNet": lambda spec, n: DeconvNetDecoder(spec, n, bottleneck=8, depths=one_a_map(spec)),
    "SegNet": lambda spec, n: SegNetDecoder(spec, n, depths=one_a_map(spec)),
    "SegNet-Basic": SegNetBasicDecoder,
    "U-Net": lambda spec, n: UNetDecoder(spec, n, widths=(8,) * (len(spec.strides) - 1)),
    "U-Net transposed": lambda spec, n: UNetDecoder(
        spec, n, widths=(8,) * (len(spec.strides) - 1), upsampling="transposed"
    ),
    "tiramisu": lambda spec, n: TiramisuDecoder(spec, n, layers=one_a_map(spec)[1:], growth=4, width=8),
    "LargeFOV": partial(LargeFOVDecoder, width=8),
    "ASPP": partial(ASPPDecoder, width=8),
    "DeepLab v3": partial(DeepLabV3Decoder, width=8),
    "DeepLab v3 torchvision": TorchvisionDeepLabV3Decoder,
    "DeepLab v3+": partial(DeepLabV3PlusDecoder, width=8, finest_width=4),
    "context": ContextDecoder,
    "SegFormer": partial(SegFormerDecoder, width=8),
    "DPT": partial(DPTDecoder, width=8),
    "DPT depth": partial(DPTDecoder, width=8, head="depth"),
    "Eigen": partial(EigenDecoder, width=8, end_to_end=True),
    "Eigen, two scales": partial(EigenDecoder, width=8, scales=2),
    "FPN": partial(FPNDecoder, width=8, branch_width=8),
    "PSPNet": partial(PSPNetDecoder, width=8),
    "UPerNet": partial(UPerNetDecoder, width=8),
    "pointwise": PointwiseDecoder,
    "patches": partial(PatchDecoder, cells=4, hidden=8),
    "anytime": AnytimeDecoder,
    "GridNet": GridNetDecoder,
}

SPEC = FeatureSpec((8, 8, 12, 16, 24), (2, 4, 8, 16, 32))

_MARGIN = r"needs maps that start at the image's corner.*Set the encoder's `padded` to true"
_NO_MARGIN = r"has no margin, and may end before the image does\. Set the encoder's `padded` to true"
_INSIDE = r"the planes begin inside the image.*"
_OWN_CROPS = ("FCN-8s", "FCN-16s learned", "FCN-32s", "FCN to image", "FCN torchvision", "U-Net", "U-Net transposed",
              "tiramisu")  # fmt: skip

# encoders that come back to one map, of stride 1
ONE_MAP = ("frrn", "gridnet", "fabric", "fabric sparse", "fabric budget")
_ONE_MAP_IS_TOO_FEW = {
    **dict.fromkeys(("U-Net", "U-Net transposed", "tiramisu"), "the encoder yields one, of stride 1. Use Pointwise"),
    **dict.fromkeys(("transposed", "resize-convolve", "pixel shuffle"), "coarsest map has stride 1. Give at most 0"),
    "DeepLab v3+": r"a single map, of stride 1, and no finer one to refine with\. Use DeepLabV3Decoder",
}

# pairs that cannot work, and what is said of each
REFUSED = {
    **{
        (encoder, decoder): _MARGIN
        for encoder in ("fcn vgg11", "unet unpadded", "fc-densenet unpadded")
        for decoder in DECODERS
        if decoder not in _OWN_CROPS
    },
    **{("fc-densenet unpadded", decoder): _NO_MARGIN for decoder in _OWN_CROPS if decoder.startswith("FCN")},
    **{(e, d): _INSIDE for e in ("fcn vgg11", "fc-densenet unpadded") for d in ("U-Net", "U-Net transposed")},
    **{
        (e, d): "each cell of this encoder's map describes a patch" for e in PATCHES for d in DECODERS if d != "patches"
    },
    **{(e, d): why for e in ONE_MAP for d, why in _ONE_MAP_IS_TOO_FEW.items()},
    ("fcn vgg11", "tiramisu"): r"crops to maps that start at the image's corner.*Set the encoder's `padded` to true",
    ("unet unpadded", "tiramisu"): r"crops to maps that start at the image's corner.*Set the encoder's `padded` to",
    **dict.fromkeys(
        (("eigen", decoder) for decoder in ("transposed", "resize-convolve", "pixel shuffle")),
        "coarsest map has stride 4. Give at most 2",
    ),
    ("timm vit", "FCN-8s"): r"finest_stride 8 needs a map of that stride.*Set finest_stride to one of \[32, 16\]",
}
PAIRS = [pair for pair in itertools.product(ENCODERS, DECODERS) if pair not in REFUSED]
# these leave the coarsest map unread
READ_THE_FINEST_ALONE = {"pointwise", "GridNet"}

# each of the last maps comes by layers of its own, which are reached from no other one
PARALLEL = {"msdnet"}


# the finest map of these is the image itself
IMAGE_AS_FINEST = {"eigen"}


class Remembered(Encoder):
    """An encoder that runs once for each size of image; its maps are then handed out as if it had run again.

    In training the maps require gradients, and `reached` says which of the encoder's parameters each would have
    passed its gradient on to.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.spec = encoder.spec
        self.body = [encoder]  # in a list: no part of the network
        self.made: dict[tuple[object, ...], list[Tensor]] = {}
        self.given: list[Tensor] = []
        self.layout = torch.contiguous_format
        self.reached: list[set[str]] = []

    @property
    def multiple(self) -> int:
        return self.body[0].multiple

    @property
    def parameters_by_name(self) -> set[str]:
        return {name for name, _ in self.body[0].named_parameters()}

    def forward(self, image: Tensor) -> list[Tensor]:
        key = (image.shape, self.training)
        if key not in self.made:
            self._run(key, image)
        precision = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        self.given = [
            m.detach().to(precision).clone(memory_format=self.layout).requires_grad_(self.training)
            for m in self.made[key]
        ]
        return list(self.given)

    def _run(self, key: tuple[object, ...], image: Tensor) -> None:
        encoder = self.body[0].train(self.training)
        with torch.set_grad_enabled(self.training):
            maps = encoder(image)
        if self.training:
            names = {parameter: name for name, parameter in encoder.named_parameters()}
            self.reached = [{names[leaf] for leaf in leaves(m) if leaf in names} for m in maps]
        self.made[key] = [m.detach() for m in maps]


def leaves(value: Tensor) -> set[Tensor]:
    """What a backward pass from `value` would give gradients to."""
    found, seen, waiting = set(), set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


@lru_cache(maxsize=1)
def remembered(name: str) -> Remembered:
    torch.manual_seed(0)
    return Remembered(ENCODERS[name]())


def randomise_zeros(net: nn.Module) -> nn.Module:
    """Scores that start at zero let no gradient through to the layers below; this is not what is tested."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


# a decoder that reads the coarsest map, for each encoder
READERS = {
    **dict.fromkeys(PATCHES, "patches"),
    "msdnet": "anytime",
    "unet unpadded": "U-Net",
    "fc-densenet unpadded": "tiramisu",
}


@lru_cache(maxsize=1)
def whole(name: str) -> DenseNetwork:
    torch.manual_seed(0)
    decoder = DECODERS[READERS.get(name, "FCN-32s")]
    return randomise_zeros(DenseNetwork(ENCODERS[name](), decoder, {"labels": 3}))


def silent(module: nn.Module) -> list[str]:
    """Parameters that no gradient reached."""
    return [key for key, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def distance(values: Tensor, reference: Tensor) -> float:
    return ((values.float() - reference).norm() / reference.norm()).item()
