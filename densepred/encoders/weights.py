"""Where pretrained weights come from: torchvision's ImageNet files, or any file with its keys."""

import http.client
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from densepred.errors import WeightsError

IMAGENET = "imagenet"
"""The word that asks for torchvision's own ImageNet weights."""

# not V2: torchvision's segmentation networks, and the published figures to compare with, start from V1. Recipes such as
# V2's (label smoothing, mixup) gain on ImageNet and tend to lose in transfer (Kornblith et al., arXiv:2010.16402)
IMAGENET_VERSION = "IMAGENET1K_V1"

_WRAPPERS = ("state_dict", "model")

logger = logging.getLogger(__name__)


def weights_file(weights: str | Path, name: str) -> Path:
    """The file that a `weights` argument means: torchvision's of that network for "imagenet", else the path itself.

    Args:
        weights: "imagenet", or the path of a file.
        name: torchvision's name of the network.

    Raises:
        WeightsError: If "imagenet" is asked for, and the file is not in the cache and cannot be downloaded.

    Example:
        >>> weights_file("resnet50.pth", "resnet50").name
        'resnet50.pth'
    """
    return imagenet_file(name) if weights == IMAGENET else Path(weights).expanduser()


def imagenet_file(name: str) -> Path:
    """The file of torchvision's ImageNet weights of a network, see `torchvision_file`."""
    advice = "set weights to the path of a state dict with torchvision's keys, or to null to start from random weights"
    return torchvision_file(name, IMAGENET_VERSION, f"The ImageNet weights of {name}", advice)


def torchvision_file(name: str, version: str, what: str, advice: str) -> Path:
    """A file of weights that torchvision publishes, downloaded into torch.hub's cache if it is not there.

    The download is checked against the hash in the file's name and appears whole or not at all.

    Args:
        name: torchvision's name of the network.
        version: torchvision's name of the weights, such as IMAGENET1K_V1.
        what: How to call them in an error.
        advice: What else one can do, for an error.

    Raises:
        WeightsError: If the file is not in the cache and cannot be downloaded.
    """
    url: str = get_model_weights(name)[version].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if file.exists():
        return file
    digest = file.stem.rsplit("-", 1)[-1]
    logger.info("Downloading %s to %s", url, file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digest)
    # RuntimeError: the hash is wrong, because the file was cut off or altered on its way
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise WeightsError(
            f"{what} are not on this machine and could not be downloaded: {error}.\n"
            f"  file:          {file.name}\n"
            f"  looked for in: {file.parent} (TORCH_HOME moves it)\n"
            f"  download from: {url}\n"
            f"Put that file into that folder by hand, or {advice}."
        ) from error
    return file


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    Reads what `torch.save` wrote, under `weights_only=True`, and safetensors where that package is installed. A
    checkpoint that holds the state dict under `state_dict` or `model` is unwrapped.

    Raises:
        WeightsError: If the file is missing, damaged, or holds no tensors.
    """
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise WeightsError(
            f"weights: {file} {what} (looked for from {Path.cwd()}). Expected 'imagenet', the path of a state dict "
            "with torchvision's keys, or null for random weights."
        )
    content = _read(file)
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)} if _is_dict(content) else {}
    if not tensors:
        found = f"a dictionary with keys {list(content)[:5]}" if _is_dict(content) else f"a {type(content).__name__}"
        raise WeightsError(
            f"weights: {file} holds {found}. Expected a dictionary of tensors, at the top or under "
            f"{' or '.join(repr(wrapper) for wrapper in _WRAPPERS)}: save it as torch.save(model.state_dict(), FILE)."
        )
    return tensors


def _is_dict(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(key, str) for key in content)


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise WeightsError(
            f"weights: reading {file} needs a package that is missing: pip install safetensors"
        ) from error
    except Exception as error:  # a damaged file makes the readers raise anything
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"weights: {file} ({file.stat().st_size} bytes) cannot be read: {cause}\n"
            "It is damaged, cut off, or holds Python objects besides tensors. Delete and download it again, or save "
            "its state dict alone: torch.save(model.state_dict(), FILE)."
        ) from error
