"""What stands on the command line of a run: its parser, the parts it can name, checkpoints and nulls."""

import argparse
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NoReturn

import yaml
from pytorch_lightning.cli import LightningArgumentParser

from densepred.resume import checkpoint_config, find_checkpoint

ROOT = "runs"
"""Where runs go unless trainer.default_root_dir says otherwise."""


def import_parts() -> None:
    """Imports every part that a configuration may name, so that their short names work."""
    for package in ("encoders", "decoders", "tasks", "losses", "balance", "data", "callbacks"):
        for module in iter_modules(import_module(f"densepred.{package}").__path__):
            import_module(f"densepred.{package}.{module.name}")
    import_module("densepred.schedules")


class RunParser(LightningArgumentParser):
    """Says what is wrong with an option without listing the types that were tried."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and ends with status 2."""
        if "arguments are required" in message:
            message += ". Give --config FILE, or --ckpt_path with the name or file of a checkpoint that knows them."
        tried = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>",
                 "Given value type:", "Given value: NestedArg")  # fmt: skip
        super().error("\n".join(line for line in message.split("\n") if not line.lstrip().startswith(tried)), ex)


def with_checkpoint(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Arguments with the checkpoint found and, unless a config is given, the checkpoint's own put first."""
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
        return arguments, None
    root = Path(next(root for root in roots if root))
    if name == "auto" and not list(root.glob("version_*/checkpoints/last.ckpt")):
        return [*arguments, "--ckpt_path=null"], None  # the first start of a job that may be started again
    found = find_checkpoint("last" if name == "auto" else str(name), root)
    verb, *rest = [*arguments, f"--ckpt_path={found}"]
    if known.config:
        return [verb, *rest], found
    config = checkpoint_config(found)
    if verb != "fit":  # devices, callbacks and loggers of the training are not the evaluation's
        config["trainer"] = {
            k: v for k, v in config.get("trainer", {}).items() if k in ("default_root_dir", "precision")
        }
    return [verb, f"--config={yaml.safe_dump(config)}", *rest], found


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
    """A configuration; None for one that cannot be read, which the parser refuses by name."""
    try:
        text = Path(path_or_text).read_text()
    except OSError:
        text = path_or_text
    try:
        content = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None
