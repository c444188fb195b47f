"""What a module keeps of its arguments, so that a checkpoint rebuilds it."""

import inspect

import pytorch_lightning as pl

from densepred.recipe import Recorded, arguments_of, class_path, recipe
from densepred.starting_weights import without_starting_weights


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
