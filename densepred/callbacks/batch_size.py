"""The largest batch that fits into the device's memory."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BatchSizeFinder

from densepred.errors import ConfigurationError


class LargestBatch(BatchSizeFinder):
    """Doubles the training batch until memory is full, and trains with the last size that fitted.

    Each size trains a few steps from the same weights, which are put back at the end. It is Lightning's
    BatchSizeFinder, which would ask for more images than the training set has, build the schedule for the number of
    steps of the first batch size, and search again when a run is evaluated. With `reference_batch` the learning rate
    follows the batch found. Write the size down where a run must be repeatable (`--data.batch_size`): another device
    finds another.

    Args:
        start: Images of the first batch that is tried.
        most: No batch is larger.
        steps: Training steps of each size.

    Raises:
        ConfigurationError: If the first batch is larger than `most` or the training set, several processes train
            together, or there is no datamodule.

    Example:
        >>> LargestBatch(start=4, most=64).sizes(images=50)
        [4, 8, 16, 32]
    """

    def __init__(self, start: int = 2, most: int = 1024, steps: int = 3) -> None:
        if not 1 <= start <= most or steps < 1:
            raise ConfigurationError(
                f"LargestBatch: start is {start}, most {most}, steps {steps}; expected 1 <= start <= most, and 1 or "
                "more steps."
            )
        super().__init__(mode="power", steps_per_trial=steps, init_val=start)
        self.start = start
        self.most = most

    def sizes(self, images: int) -> list[int]:
        """The batch sizes that are tried on a training set of so many images."""
        sizes = [self.start]
        while 2 * sizes[-1] <= min(self.most, images):
            sizes.append(2 * sizes[-1])
        return sizes

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str | None = None) -> None:
        """Refuses what cannot be searched."""
        if stage != "fit":
            return
        if trainer.world_size > 1:
            raise ConfigurationError(
                f"LargestBatch: {trainer.world_size} processes train together, and memory cannot be full on one of "
                "them alone. Search with trainer.devices 1, then set data.batch_size."
            )
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Searches, and builds optimizer and schedule for the size found."""
        data = getattr(trainer, "datamodule", None)
        datasets = getattr(data, "datasets", None)  # callbacks know a datamodule by what it offers
        if data is None or datasets is None:
            raise ConfigurationError("LargestBatch changes the batch size of a datamodule of densepred; there is none.")
        images = len(datasets["train"])
        if images < self.start:
            raise ConfigurationError(
                f"LargestBatch: start is {self.start}, the training set has {images} images. Set start to {images} or "
                "less."
            )
        # Lightning stops after so many sizes; it would take the set for larger than it is
        self._max_trials = len(self.sizes(images))
        self._max_val = 2 * self.most + 1
        self.scale_batch_size(trainer, pl_module)
        trainer.strategy.setup_optimizers(trainer)
        print(f"batch size {data.batch_size}: the largest that fits of {', '.join(map(str, self.sizes(images)))}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluation keeps its batch size."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As in validation."""

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As in validation."""
