"""What a module keeps of a run, so that one that is continued goes on as if it had never stopped."""

from abc import abstractmethod
from typing import Any

from pytorch_lightning.trainer.states import TrainerFn
from torch.optim import Optimizer

from densepred import __version__
from densepred.hyperparameters import Remembering
from densepred.random_states import all_random_states, set_random_state
from densepred.resume import continue_after_epoch, keep_configured_rates, keep_on_the_curve


class Resuming(Remembering):
    """A LightningModule whose checkpoints know their version, the random numbers' state and the curve of rates."""

    def __init__(self) -> None:
        super().__init__()
        self._random_states: list[dict[str, Any]] = []

    @abstractmethod
    def build_optimizer(self) -> Optimizer:
        """The optimizer at its configured rates, before any schedule."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps which densepred wrote it, and where the random numbers of each process stand."""
        checkpoint["densepred_version"] = __version__
        if self._trainer is not None:
            checkpoint["random_states"] = all_random_states(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """On resuming, the configured rates win over those in the optimizer's saved state."""
        self._random_states = checkpoint.get("random_states", [])
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and checkpoint.get("optimizer_states"):
            keep_configured_rates(checkpoint, self.build_optimizer())

    def on_train_start(self) -> None:
        """A resumed run draws on, on its own curve of rates, also where it is now longer than it was."""
        if self.global_rank < len(self._random_states):
            set_random_state(self._random_states[self.global_rank], self.device)
        self._random_states = []
        continue_after_epoch(self.trainer)
        keep_on_the_curve(self.trainer)
