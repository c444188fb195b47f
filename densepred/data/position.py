"""Where in an epoch a trainer stands that begins or resumes it."""

from pytorch_lightning import Trainer


def batches_done(trainer: Trainer) -> int:
    """How many batches of the epoch that begins were trained before an interruption; 0 unless a run is resumed."""
    loop = trainer.fit_loop
    batches = loop.epoch_loop.batch_progress
    # written after the step of the last batch, by a checkpoint of the user's: the trainer goes on with the next epoch
    over = batches.is_last_batch and loop.epoch_loop.restarted_on_train_batch_end
    done: int = batches.current.processed  # type: ignore[attr-defined]
    return done if loop.restarted_mid_epoch and not over else 0
