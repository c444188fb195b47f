"""A checkpoint's network and tasks, rebuilt without Lightning and without code from elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from densepred.decoders.base import DecoderFactory
from densepred.encoders.base import Encoder
from densepred.errors import ConfigurationError
from densepred.inference.safetensors_file import read_stored
from densepred.network import DenseNetwork
from densepred.recipe import rebuilt, refuse_foreign
from densepred.refine.base import Refiner
from densepred.tasks.base import Task
from densepred.tasks.names import refined_tasks

_ARGUMENTS: dict[str, Any] = {
    "encoder": Encoder,
    "decoder": DecoderFactory,
    "tasks": Task,
    "auxiliary": DecoderFactory,
    "refine": Refiner,
}
_OPTIONS = ("share_decoder", "auxiliary_depth")


def load_network(file: str | Path, allow: Sequence[str] = ()) -> tuple[DenseNetwork, list[Task]]:
    """The network of a checkpoint, with its weights and in evaluation mode, and its tasks.

    Args:
        file: A checkpoint that `densepred fit`, or a Trainer with a DensePredictor, has written.
        allow: Packages or classes outside densepred, torch and torchvision that the checkpoint may name.

    Raises:
        ConfigurationError: If the file is no checkpoint of densepred, names foreign classes, or its weights don't fit
            what it describes.
    """
    path = Path(file).expanduser()
    checkpoint = read_stored(path)
    plain = checkpoint.get("hyper_parameters") or {}
    if str(plain.get("_class_path", "")).endswith("RayDistancePredictor"):
        raise ConfigurationError(
            f"{path} is of ray distances, which have no planes to predict or export. In Python "
            "RayDistancePredictor.load_from_checkpoint loads it, and densepred.inference.reconstruction.reconstruct "
            "makes points of a picture, seen and hidden (notebooks/07_drdf.ipynb)."
        )
    if not {"encoder", "decoder", "tasks"} <= set(plain):
        raise ConfigurationError(
            f"{path} does not say how its network was built: it holds {', '.join(map(str, list(checkpoint)[:6]))}. "
            "Expected a checkpoint written by densepred fit, or by a Trainer with a DensePredictor."
        )
    plain = {name: plain[name] for name in (*_ARGUMENTS, *_OPTIONS) if name in plain}
    refuse_foreign(plain, str(path), allow)
    parts = {name: rebuilt(value, name, _ARGUMENTS.get(name, Any)) for name, value in plain.items()}
    tasks = cast(list[Task], parts.pop("tasks"))
    channels = {task.name: task.out_channels for task in tasks}
    network = DenseNetwork(out_channels=channels, refined=refined_tasks(tasks, parts.get("refine")), **parts)
    _load(path, checkpoint["state_dict"], {"network": network, "tasks": nn.ModuleList(tasks)})
    for task in tasks:
        task.eval()
    return network.eval(), tasks


def _load(path: Path, tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module]) -> None:
    for prefix, module in modules.items():
        own = {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ConfigurationError(
                f"{path}: its weights do not fit the network that it describes: {error}\nIf it was trained with a "
                "DensePredictor of your own, load that one and use Predictor.of(module)."
            ) from error
