"""YAML read without trust: plain values alone, and no more of them than a person writes."""

from pathlib import Path
from typing import Any

import yaml

from densepred.errors import ConfigurationError

LONGEST = 4 << 20
"""Bytes. The longest configuration of a run has some ten thousand."""
MOST_VALUES = 1_000_000
"""With every alias written out. Ten lines of aliases can stand for a thousand million."""


def read_yaml(source: str | Path, where: str) -> Any:
    """The plain values of a YAML text.

    Args:
        source: The text, or its file.
        where: How to call it in an error.

    Raises:
        ConfigurationError: If it is too long, too deep, contains itself, or stands for more values than could be meant.
        yaml.YAMLError: If it is no YAML.

    Example:
        >>> read_yaml("model: &a [1, 2]\\nagain: *a", "here")
        {'model': [1, 2], 'again': [1, 2]}
        >>> read_yaml("&a [*a]", "here")
        Traceback (most recent call last):
        densepred.errors.ConfigurationError: here: a value contains itself. Write out what its aliases (*a) stand for.
    """
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if size > LONGEST:
        raise ConfigurationError(f"{where}: {size:,} bytes; a configuration has at most {LONGEST:,}.")
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
    except UnicodeDecodeError as error:
        raise yaml.YAMLError(f"it is no text ({error})") from error
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (values := _values(node, {}, where)) > MOST_VALUES:
            raise ConfigurationError(
                f"{where}: its aliases stand for {values:,} values; a configuration has at most {MOST_VALUES:,}. Write "
                "out what they stand for."
            )
        return loader.construct_document(node)
    except RecursionError as error:
        raise ConfigurationError(f"{where}: values lie too deep within each other.") from error
    except ConfigurationError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, ValueError) as error:  # such as `!!int ""`
        raise yaml.YAMLError(f"a value is not of the type that its tag says ({error!r})") from error
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int], where: str) -> int:
    """How many values a node stands for, every alias written out."""
    identity = id(node)
    if known.get(identity) == 0:
        raise ConfigurationError(f"{where}: a value contains itself. Write out what its aliases (*a) stand for.")
    if identity not in known:
        known[identity] = 0  # being counted
        inside = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        parts = inside if isinstance(node, yaml.CollectionNode) else []
        known[identity] = 1 + sum(_values(part, known, where) for part in parts)
    return known[identity]
