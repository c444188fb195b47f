"""Options that encoders have in common."""

from collections.abc import Sequence
from typing import Literal

from densepred.errors import ConfigurationError

OutputStride = Literal[32, 16, 8]
"""Stride of an encoder's coarsest map."""


def check_choice(owner: str, option: str, value: object, choices: Sequence[object]) -> None:
    """Refuses a value that is not among the choices.

    Raises:
        ConfigurationError: It names the choices.

    Example:
        >>> check_choice("VGGEncoder", "output_stride", 4, (32, 16, 8))
        Traceback (most recent call last):
        densepred.errors.ConfigurationError: VGGEncoder: output_stride is 4. Expected one of: 32, 16, 8.
    """
    if value not in choices:
        raise ConfigurationError(f"{owner}: {option} is {value!r}. Expected one of: {', '.join(map(str, choices))}.")
