"""What an output folder's predictions were made with: a second run goes on with them only if it makes the same."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from densepred.data.atomic import whole_file
from densepred.errors import ConfigurationError
from densepred.inference.bulk import BulkOptions
from densepred.inference.cameras import UNKNOWN_CAMERA, AssumedCamera
from densepred.inference.options import InferenceOptions
from densepred.recipe import recipe

NAME = "predict.json"


def settings_of(
    networks: Sequence[Path | str],
    options: InferenceOptions,
    notes: Sequence[str],
    bulk: BulkOptions,
    camera: AssumedCamera = UNKNOWN_CAMERA,
) -> dict[str, Any]:
    """The settings of a run, as plain values.

    Args:
        networks: Files of checkpoints, which are told apart by their content, or names of published weights.
        options: How the network is asked.
        notes: What is done to every picture.
        bulk: How many pictures are predicted.
        camera: What point clouds take for the camera.
    """
    named = [
        {"file": str(network), "blake2b": digest(network)} if isinstance(network, Path) else {"name": network}
        for network in networks
    ]
    plain = {field.name: recipe(getattr(options, field.name)) for field in fields(options)}
    assumed = {field.name: getattr(camera, field.name) for field in fields(camera)}
    cloud = {"camera": assumed if camera != UNKNOWN_CAMERA else None}  # None: as folders that don't tell it
    return {"networks": named, "pictures": list(notes), **plain, "half": bulk.half, "every": bulk.every, **cloud}


def digest(file: Path) -> str:
    """A fingerprint of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def claim(folder: Path, settings: dict[str, Any], planned: Iterable[Path], overwrite: bool) -> Path:
    """Writes the settings into an output folder, or finds that they are there already; returns their file.

    What is older than that file was made with others, or is to be made anew.

    Args:
        folder: The output folder.
        settings: Of `settings_of`.
        planned: Files that will be written; not looked at where the settings are there.
        overwrite: Take the folder whatever is in it.

    Raises:
        ConfigurationError: If the folder's predictions were made with others, or some of the planned files come from
            elsewhere, and `overwrite` is not asked for.
    """
    path = folder / NAME
    before = _read(path)
    if before is not None and not overwrite:
        other = [key for key in settings if _essence(before.get(key)) != _essence(settings[key])]
        if other:
            told = "\n".join(f"  {key}: {_short(before.get(key))} there, {_short(settings[key])} now" for key in other)
            raise ConfigurationError(
                f"{folder} holds predictions that were made otherwise:\n{told}\nName another --output, or replace them "
                "with --overwrite."
            )
        return path
    strange = next((file for file in planned if file.exists()), None) if not overwrite else None
    if strange is not None:
        raise ConfigurationError(
            f"{strange} is there, but no {NAME} beside it that says how it was predicted. Name another --output, or "
            "replace such files with --overwrite."
        )
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}. Remove it, or replace all with --overwrite.") from error
    return content if isinstance(content, dict) else {}


def _essence(value: Any) -> Any:
    """A checkpoint may be moved."""
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return [one.get("blake2b", one) for one in value]
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return ", ".join(str(one.get("file", one.get("name"))) for one in value)
    return json.dumps(value)
