"""What a module keeps of its arguments, so that a checkpoint rebuilds it."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl

from densepred.recipe import Recorded, arguments_of, class_path, recipe, refuse_foreign
from densepred.resume import read_checkpoint
from densepred.starting_weights import without_starting_weights
from densepred.vouched import RUN_PACKAGES, only_vouched


class Remembering(Recorded, pl.LightningModule):
    """A LightningModule whose hyperparameters are plain values, wherever it was built.

    They are the command line's own, or read off the parts that it was built of in Python. Starting weights are left out
    of what a checkpoint holds, as they are inside it; dashboards see where they came from.
    """

    def remember(self) -> None:
        """Saves the hyperparameters; the constructor's first act.

        Raises:
            ConfigurationError: If an argument cannot be written down.
        """
        arguments = arguments_of(self)
        # a class derived from one of densepred may hand on what it likes: only its own arguments rebuild it
        constructors = [vars(of)["__init__"] for of in type(self).__mro__ if "__init__" in vars(of)]
        handed_on = [name for constructor in constructors for name in inspect.signature(constructor).parameters]
        self.save_hyperparameters(ignore=[*handed_on, *arguments])
        if "_instantiator" in self.hparams:
            self.save_hyperparameters()
        else:
            plain = {name: recipe(value, name) for name, value in arguments.items()}
            self.save_hyperparameters({"_class_path": class_path(type(self)), **plain})
            self.hparams["_instantiator"] = "pytorch_lightning.cli.instantiate_module"
        self.hparams.update(without_starting_weights(dict(self.hparams)))

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        allow: Sequence[str] = (),
        **arguments: Any,
    ) -> Self:
        """The module of a checkpoint, with its weights.

        Args:
            checkpoint_path: A file that a Trainer has written.
            map_location: Where its tensors go; by default where they were.
            hparams_file: The hyperparameters, in place of those in the checkpoint; with code of its own, if it likes.
            strict: Whether names of weights must agree.
            weights_only: Whether Python objects besides plain values and tensors are refused.
            allow: Packages or classes that the checkpoint may name, beside those of a run: densepred, torch,
                torchvision, Lightning and albumentations.
            **arguments: Of the constructor, above the checkpoint's.

        Raises:
            ConfigurationError: If it cannot be read, or names classes that are not allowed.
        """
        path = Path(checkpoint_path).expanduser()
        vouched = None
        if weights_only is not False:
            vouched = [class_path(cls), *allow]  # whoever calls a class has it
            kept = read_checkpoint(path)
            module = (kept.get("hyper_parameters") or {}).get("_class_path")
            plain = {key: kept[key] for key in kept if key != "state_dict"}
            refuse_foreign([plain, {"class_path": module}], str(path), vouched, RUN_PACKAGES)
        with only_vouched(vouched):
            return super().load_from_checkpoint(
                path, map_location, hparams_file, strict, weights_only=weights_only, **arguments
            )
