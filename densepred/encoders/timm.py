"""Any network of timm that yields maps."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.func import functional_call

from densepred.encoders.base import Encoder
from densepred.encoders.loading import LoadReport, fit_tensors
from densepred.encoders.options import OutputStride, check_choice
from densepred.encoders.weights import IMAGENET, read_state_dict
from densepred.errors import ConfigurationError, WeightsError
from densepred.features import FeatureSpec


class TimmEncoder(Encoder):
    """A network of timm, without its classifier: `timm.create_model(name, features_only=True)`.

    Needs timm: `pip install densepred[timm]`. Networks of convolutions, hierarchical transformers (Swin, PVT, MViT,
    ...) and plain vision transformers, for images of any size: position embeddings are interpolated. A plain vision
    transformer yields four maps of one stride, after a quarter, a half, three quarters and all of its blocks: what
    `DPTDecoder` reads. Networks whose attention normalises globally pooled maps by batch (resnest*, rexnet*, skresnet*)
    train with two or more images a batch.

    Args:
        name: timm's name of the network, such as "convnext_tiny" or "vit_small_patch16_224.augreg_in21k"; what stands
            behind the point says which of several pretrained weights are meant.
        weights: "imagenet" for the weights that timm has for the name (not always of ImageNet), downloaded into its
            cache; the path of a file with timm's keys (.pth or .safetensors); None for timm's random initialisation.
            What was loaded, missing and skipped is logged and kept in `load_report`.
        in_channels: Channels of the image. Other than 3, the pretrained first convolution is adapted by
            `adapt_input_channels`: grey images keep their response.
        mean: Mean of each channel, of an image in [0, 1]; by default what timm says of the weights, and ImageNet's
            without weights.
        std: As `mean`.
        output_stride: Stride of the coarsest map, 16 or 8 by dilation, where timm has it for the network (ResNet,
            EfficientNet, ConvNeXt, RegNet, ...); by default the network's own.
        out_indices: Which of timm's maps, finest first; by default all, and four of a plain vision transformer.

    Attributes:
        load_report: What became of each tensor of the weights; None without weights.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1]; H and W multiples of `multiple`, which the
            network pads to.
        returns: maps (B, C_i, H / s_i, W / s_i), finest first.

    Raises:
        ConfigurationError: If timm is missing or has no such network, or the network reads images of one size only,
            eats the border of the image, or has no such output stride or map.
        WeightsError: If the weights cannot be found, downloaded or read, or do not fit at all.

    Reference:
        Wightman. PyTorch Image Models. 2019. https://github.com/huggingface/pytorch-image-models
    """

    def __init__(
        self,
        name: str,
        weights: str | Path | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        output_stride: OutputStride | None = None,
        out_indices: tuple[int, ...] | None = None,
    ) -> None:
        timm = _timm(type(self).__name__)
        whole = _outline(timm, name)
        default: dict[str, Sequence[float] | None] = {"mean": mean, "std": std}
        for key in default if weights is not None else ():
            if default[key] is None:
                pretrained = whole.pretrained_cfg[key]
                default[key] = tuple(pretrained[i % len(pretrained)] for i in range(in_channels))
        super().__init__(in_channels, **default)
        self.name = name
        options = _options(whole, name, output_stride, out_indices)
        self.model = _features(timm, name, in_channels, options)
        self.channels_last = str(getattr(self.model, "output_fmt", "NCHW")) in ("NHWC", "Format.NHWC")
        info = self.model.feature_info
        self.spec = FeatureSpec(tuple(info.channels()), tuple(info.reduction()))
        self._check_maps()
        self.load_report: LoadReport | None = None
        if weights is not None:
            self.load_report = self._load(timm, whole, weights)

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to timm's maps, finest first."""
        features: list[Tensor] = self.model(self.normalise(image))
        return [feature.permute(0, 3, 1, 2) for feature in features] if self.channels_last else list(features)

    @torch.no_grad()
    def _check_maps(self) -> None:
        """Runs the network once without data: it must take images of any size and fill them with its maps."""
        cells = -(-64 // self.multiple)
        size = (cells + 3) * self.multiple, (cells + 5) * self.multiple
        # not the state dict: it leaves out buffers that are not saved, such as those of rotary positions
        state = {key: value.to("meta") for key, value in (*self.named_parameters(), *self.named_buffers())}
        self.eval()
        try:
            features = functional_call(self, state, torch.empty(1, self.in_channels, *size, device="meta"))
        except Exception as error:  # networks assert, view and add what does not fit
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigurationError(
                f"TimmEncoder: {self.name} does not read images of any size ({size[0]} x {size[1]}: {reason}). Take a "
                "network of convolutions, a vit_*, or a hierarchical transformer that does, such as swin_*, pvt_v2_*."
            ) from error
        finally:
            self.train()
        found = [tuple(feature.shape[1:]) for feature in features]
        expected = [
            (channels, size[0] // stride, size[1] // stride)
            for channels, stride in zip(self.spec.channels, self.spec.strides, strict=True)
        ]
        if found != expected:
            raise ConfigurationError(
                f"TimmEncoder: {self.name} yields maps of shapes {found} for an image of {size[0]} x {size[1]}; maps "
                f"that cover it would have {expected}. Take another network, or TorchvisionEncoder if it has this one."
            )

    def _load(self, timm: Any, whole: Any, weights: str | Path) -> LoadReport:
        if weights == IMAGENET:
            source, tensors = f"timm's {self.name}", _pretrained(timm, self.name)
        else:
            source, tensors = str(Path(weights).expanduser()), {}
        try:
            tensors = tensors or read_state_dict(Path(source))
            own = self.state_dict()
            places = {key: place for key in whole.state_dict() if (place := _place(key, own))}
            unneeded = tuple(key for key in whole.state_dict() if key not in places)
            first = whole.pretrained_cfg.get("first_conv") or ""
            input_layer = places.get(f"{first if isinstance(first, str) else first[0]}.weight", "")
            tensors = {places.get(key, key): value for key, value in tensors.items()}
            report = fit_tensors(self, tensors, source, f"TimmEncoder ({self.name})", input_layer, unneeded)
        except WeightsError as error:
            raise WeightsError(str(error).replace("torchvision's", "timm's")) from error
        report.log()
        return report


def _timm(owner: str) -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise ConfigurationError(f"{owner} needs the package timm: pip install 'densepred[timm]'") from error


def _outline(timm: Any, name: str) -> Any:
    """The whole network without numbers: its class, its keys and what timm knows of its weights."""
    known = name.split(".")[0]
    if not timm.is_model(known):
        close = timm.list_models(f"*{known.split('_')[0]}*")[:8]
        raise ConfigurationError(
            f"TimmEncoder: timm {timm.__version__} has no network {name!r}. "
            f"{'Some that it has: ' + ', '.join(close) if close else 'timm.list_models() names those it has'}."
        )
    with torch.device("meta"):
        return timm.create_model(name)


def _options(whole: Any, name: str, output_stride: int | None, out_indices: tuple[int, ...] | None) -> dict[str, Any]:
    """What `timm.create_model` must be told for this kind of network."""
    accepted = {key for kind in type(whole).__mro__ for key in inspect.signature(kind).parameters}
    options: dict[str, Any] = {}
    if "dynamic_img_size" in accepted:
        options["dynamic_img_size"] = True
    if output_stride is not None:
        check_choice("TimmEncoder", "output_stride", output_stride, get_args(OutputStride))
        if "output_stride" not in accepted:
            raise ConfigurationError(f"TimmEncoder: timm's {name} has no output_stride. Leave it out.")
        options["output_stride"] = output_stride
    depth = len(whole.feature_info)
    if out_indices is None and depth > 4 and len({level["reduction"] for level in whole.feature_info}) == 1:
        out_indices = tuple(depth * (i + 1) // 4 - 1 for i in range(4))
    if out_indices is not None:
        options["out_indices"] = tuple(out_indices)
    return options


def _features(timm: Any, name: str, in_channels: int, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, features_only=True, in_chans=in_channels, **options)
    except (AssertionError, IndexError, TypeError, RuntimeError, NotImplementedError) as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ConfigurationError(
            f"TimmEncoder: timm cannot make maps of {name}{' with ' + given if given else ''}: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _place(key: str, own: dict[str, Tensor]) -> str:
    """Where a tensor of the whole network stands in this encoder; timm's ways of yielding maps rename modules."""
    places = (f"model.{key}", f"model.{key.replace('.', '_', 1)}", f"model.model.{key}", f"model.body.{key}")
    return next((place for place in places if place in own), "")


def _pretrained(timm: Any, name: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the hub, the network, the file
        raise WeightsError(
            f"The weights of timm's {name} could not be had: {(str(error).strip() or repr(error)).splitlines()[0]}\n"
            "They are downloaded from the Hugging Face hub into its cache (HF_HOME moves it). Without a network, set "
            "weights to the path of their file (model.safetensors or .pth), or to null to start from random weights."
        ) from error
    return tensors
