"""What the extra `densepred[export]` installs, imported when it is used."""

from importlib import import_module
from types import ModuleType

from densepred.errors import ConfigurationError


def needed(module: str) -> ModuleType:
    """A module of the extra `densepred[export]`.

    Raises:
        ConfigurationError: If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"Exporting needs {module.split('.')[0]}, which is not installed ({error}). Run: "
            "pip install 'densepred[export]'"
        ) from error
