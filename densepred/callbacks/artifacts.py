"""Checkpoints as artifacts of Weights & Biases, for runs that ask for it."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from densepred.callbacks.panels import run_folder
from densepred.errors import ConfigurationError


class CheckpointArtifacts(pl.Callback):
    """Uploads a run's checkpoints to Weights & Biases when the training ends, also when it fails.

    Each file is an artifact `<run id>-<best | best-<task> | last>` of type "model", with the run's name and step. It is
    left out unless a configuration asks for it: weights are large and leave the machine.

        trainer:
          callbacks:
            - class_path: CheckpointArtifacts

    `WandbLogger(log_model=True)` does it for one list of checkpoints; with several it calls whichever came last "best".

    Args:
        names: Which files of the run's `checkpoints` folder, without `.ckpt`; `best` takes every task's.

    Raises:
        ConfigurationError: If there is no WandbLogger.
    """

    def __init__(self, names: tuple[str, ...] = ("best",)) -> None:
        super().__init__()
        self.names = tuple(names)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a run without a place to upload to."""
        if not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            raise ConfigurationError(
                "CheckpointArtifacts uploads to Weights & Biases, but the trainer has no WandbLogger. Add one "
                "(--trainer.logger WandbLogger), or leave the callback out."
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Uploads what the run kept."""
        self._upload(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Uploads what there is."""
        self._upload(trainer)

    def _upload(self, trainer: pl.Trainer) -> None:
        folder = run_folder(trainer) / "checkpoints"
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for path in sorted(folder.glob("*.ckpt")):
                    if self._wanted(path.stem):
                        _send(logger, path, trainer.global_step)

    def _wanted(self, stem: str) -> bool:
        return stem in self.names or ("best" in self.names and stem.startswith("best-"))


def _send(logger: WandbLogger, path: Path, step: int) -> None:
    import wandb

    run = logger.experiment
    metadata = {"file": path.name, "run": run.name, "ended at step": step}
    artifact = wandb.Artifact(name=f"{run.id}-{path.stem}", type="model", metadata=metadata)
    artifact.add_file(str(path), name=path.name)
    run.log_artifact(artifact)
