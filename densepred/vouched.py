"""Which classes a stranger's configuration may name: a checkpoint's own parts, and what the user vouches for."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from densepred.recipe import TRUSTED

RUN_PACKAGES = (*TRUSTED, "pytorch_lightning", "lightning_fabric", "lightning", "albumentations")
"""Packages whose classes a run's configuration names: those of a checkpoint's network, and a trainer's and data's."""

CODE_RUNNERS = (
    "torch.classes",
    "torch.compile",
    "torch.distributed",
    "torch.hub",
    "torch.jit",
    "torch.load",
    "torch.multiprocessing",
    "torch.ops",
    "torch.package",
    "torch.save",
    "torch.serialization",
    "torch.testing",
    "torch.utils",
    "torch._inductor",
    "torchvision.datasets",
    "torchvision.io",
    "pytorch_lightning.cli",
    "pytorch_lightning.core.saving",
    "lightning.app",
)
"""What these packages hold that loads code or files, and no configuration of densepred needs."""

_DOTTED = re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


@contextmanager
def only_vouched(names: Sequence[str] | None) -> Iterator[None]:
    """Within it, a configuration's values name classes of the run's packages and of `names` alone.

    What stands in the place of a class as a plain string, or in a second file that a value points to, is refused as
    well: the parser asks before it imports anything.

    Args:
        names: Packages, modules or classes that the user vouches for. None leaves the parser as it is: the whole
            configuration is the user's own.
    """
    if names is None:
        yield
        return
    # its settings are the process's: there is no public way to take them back
    from jsonargparse import _common, set_parsing_settings

    before = {key: _common.parsing_settings[key] for key in ("import_path_verdicts", "import_paths_enforced")}
    vouched = [name for name in (*RUN_PACKAGES, *names) if _may_be_allowed(name)]
    set_parsing_settings(import_path_denylist=["*", *CODE_RUNNERS], import_path_allowlist=vouched)
    try:
        yield
    finally:
        _common.parsing_settings.update(before)


def foreign(name: str) -> str:
    """What to tell of a name that a checkpoint's configuration must not use."""
    return (
        f"The checkpoint's configuration wants {name}, which is none of {', '.join(RUN_PACKAGES)}, or runs code in "
        f"one. If you trust it, allow it by name: --allow {name}."
    )


def named_in(arguments: Sequence[str]) -> list[str]:
    """The dotted names in a user's own words, their options' names left out: what he types, he vouches for.

    Example:
        >>> named_in(["test", "--model.decoder=mine.MyDecoder", "--data.root", "rooms"])
        ['mine.MyDecoder']
    """
    words = [word.partition("=")[2] if word.startswith("-") else word for word in arguments]
    return [name for word in words for name in _DOTTED.findall(word)]


def without_allowed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments without `--allow NAME`, and the names.

    Example:
        >>> without_allowed(["test", "--allow", "mine", "--ckpt_path=last", "--allow=theirs.Decoder"])
        (['test', '--ckpt_path=last'], ['mine', 'theirs.Decoder'])
    """
    rest: list[str] = []
    names: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--allow":
            names += [name for name in [next(words, None)] if name is not None]
        elif word.startswith("--allow="):
            names.append(word.partition("=")[2])
        else:
            rest.append(word)
    return rest, names


def add_allow(parser: Any) -> None:
    """The option of verbs that read a checkpoint."""
    parser.add_argument(
        "--allow", action="append", default=[], metavar="NAME",
        help="a package or class beside densepred's and torch's that a checkpoint may name, such as mine",
    )  # fmt: skip


def _may_be_allowed(name: str) -> bool:
    # jsonargparse refuses to let values name itself, by an error
    return all(part.isidentifier() for part in name.split(".")) and name.partition(".")[0] != "jsonargparse"
