"""What stands on the command line of a run: its parser, the parts it can name, checkpoints and nulls."""

import argparse
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple, NoReturn

import yaml
from pytorch_lightning.cli import LightningArgumentParser

from densepred.errors import ConfigurationError
from densepred.resume import checkpoint_config, find_checkpoint
from densepred.vouched import foreign, named_in, without_allowed
from densepred.yaml_text import read_yaml

ROOT = "runs"
"""Where runs go unless trainer.default_root_dir says otherwise."""


def import_parts() -> None:
    """Imports every part that a configuration may name, so that their short names work."""
    for package in ("encoders", "decoders", "refine", "tasks", "losses", "balance", "rays", "data", "callbacks"):
        for module in iter_modules(import_module(f"densepred.{package}").__path__):
            import_module(f"densepred.{package}.{module.name}")
    import_module("densepred.schedules")


class RunParser(LightningArgumentParser):
    """Says what is wrong with an option without listing the types that were tried."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and ends with status 2."""
        if refused := re.search(r"Importing '([\w.]+)' is not allowed", message):
            message = foreign(refused[1])
        if "arguments are required" in message:
            message += ". Give --config FILE, or --ckpt_path with the name or file of a checkpoint that knows them."
        tried = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>",
                 "Given value type:", "Given value: NestedArg")  # fmt: skip
        super().error("\n".join(line for line in message.split("\n") if not line.lstrip().startswith(tried)), ex)


class Given(NamedTuple):
    """What a command line comes to.

    Args:
        arguments: For the parser.
        checkpoint: The checkpoint that it names.
        vouched: Where the checkpoint's configuration is among the arguments: the classes that the user vouches for,
            beside those of the run's packages. None: all of it is the user's own.
    """

    arguments: list[str]
    checkpoint: Path | None = None
    vouched: list[str] | None = None


def with_checkpoint(arguments: list[str]) -> Given:
    """Arguments with the checkpoint found and, unless a config is given, the checkpoint's own put first.

    Raises:
        ConfigurationError: If there is no such checkpoint; if its own configuration names classes that nobody has
            allowed (`--allow`).
    """
    arguments, allowed = without_allowed(arguments)
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--ckpt_path")
    scan.add_argument("--config", "-c", action="append", default=[])
    scan.add_argument("--trainer.default_root_dir", dest="root")
    known, _ = scan.parse_known_args(arguments)
    given = [_read_config(text) for text in known.config]
    latest_first = [config for config in reversed(given) if config is not None]
    names = [known.ckpt_path, *(config.get("ckpt_path") for config in latest_first)]
    roots = [known.root, *((config.get("trainer") or {}).get("default_root_dir") for config in latest_first), ROOT]
    name = next((name for name in names if name is not None), None)
    if name in (None, "null") or None in given:
        return Given(arguments)
    root = Path(next(root for root in roots if root))
    if name == "auto" and not list(root.glob("version_*/checkpoints/last.ckpt")):
        return Given([*arguments, "--ckpt_path=null"])  # the first start of a job that may be started again
    found = find_checkpoint("last" if name == "auto" else str(name), root)
    verb, *rest = [*arguments, f"--ckpt_path={found}"]
    if known.config:
        return Given([verb, *rest], found)
    vouched = [*allowed, *named_in(arguments)]
    config = checkpoint_config(found, vouched)
    if verb != "fit":  # devices, callbacks and loggers of the training are not the evaluation's
        config["trainer"] = {
            k: v for k, v in config.get("trainer", {}).items() if k in ("default_root_dir", "precision")
        }
    return Given([verb, f"--config={yaml.safe_dump(config)}", *rest], found, vouched)


def nulls_as_configs(arguments: list[str]) -> list[str]:
    """`--model.encoder.weights null` as a piece of configuration, since jsonargparse reads a nested null as "None"."""
    converted: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        root, *path = (part for part in name.split(".") if part != "init_args")
        if root not in ("--model", "--data") or not path:
            converted.append(word)
            continue
        rest = [] if equals else [following for following in [next(words, None)] if following is not None]
        if (value if equals else "".join(rest)) != "null":
            converted += [word, *rest]
            continue
        nested: Any = None
        for part in reversed(path):
            nested = {"init_args": {part: nested}}
        converted.append(f"--config={yaml.safe_dump({root.removeprefix('--'): nested})}")
    return converted


def _read_config(path_or_text: str) -> dict[str, Any] | None:
    """A configuration; None for one that is no YAML, which the parser refuses by name."""
    where = path_or_text if len(path_or_text) < 200 else "--config"
    try:
        file = Path(path_or_text)
        content = read_yaml(file if file.is_file() else path_or_text, where)
    except ConfigurationError:
        raise
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None
