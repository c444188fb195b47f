"""Parts of the encoder that rest while the others learn."""

import gc
from collections.abc import Iterable

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from densepred.encoders.base import Encoder
from densepred.encoders.stages import encoder_stages
from densepred.errors import ConfigurationError


class Freeze(pl.Callback):
    """Freezes the encoder, or its first stages, for the whole training or for some epochs of it.

    What is frozen gives the same maps in every step: its parameters get no gradient, and its modules stay in evaluation
    mode, so that batch normalisation neither learns statistics nor uses those of the batch, and nothing is dropped.
    With the whole encoder frozen the decoder learns on fixed features; with `FCNDecoder(finest_stride=32)`, which is
    one layer of scores, that is a linear probe.

    The parameters are in the optimizer from the start, without state of their own until they learn, so a run resumes
    at any epoch, also with other freezing than before. Several of these callbacks unfreeze step by step: what any of
    them freezes is frozen.

    Args:
        stages: How many stages of the encoder, finest first; `densepred describe` lists them. None is all of it.
        until_epoch: The first epoch, counted from 0, in which they learn; None freezes them to the end.
        from_epoch: The first epoch in which they are frozen.
        norms_only: Freeze batch normalisation alone, its statistics, scales and shifts, and let the rest learn (batches
            too small for statistics: DeepLab v2).

    Raises:
        ConfigurationError: If the encoder has fewer stages, the epochs are none, or the strategy cannot change during
            a training what is trained.

    Reference:
        Yosinski, Clune, Bengio, Lipson. How transferable are features in deep neural networks? NeurIPS 2014.
        arXiv:1411.1792. Howard, Ruder. Universal Language Model Fine-tuning for Text Classification. ACL 2018.
        arXiv:1801.06146 (unfreezing step by step).

    Example:
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> encoder = ResNetEncoder("resnet18")
        >>> modules, parameters = Freeze(stages=2).parts(encoder)
        >>> encoder.layer1 in modules, encoder.layer2 in modules, sum(p.numel() for p in parameters)
        (True, False, 157504)
    """

    def __init__(
        self,
        stages: int | None = None,
        until_epoch: int | None = None,
        from_epoch: int = 0,
        norms_only: bool = False,
    ) -> None:
        if (stages is not None and stages < 1) or from_epoch < 0 or (until_epoch is not None and until_epoch < 1):
            raise ConfigurationError(
                f"Freeze: stages is {stages}, from_epoch {from_epoch}, until_epoch {until_epoch}; expected 1 or more "
                "stages, or null for the whole encoder, and epochs counted from 0, of which at least one is frozen."
            )
        if until_epoch is not None and until_epoch <= from_epoch:
            raise ConfigurationError(
                f"Freeze: until_epoch {until_epoch} ends what from_epoch {from_epoch} has not begun. Give a later one."
            )
        self.stages = stages
        self.until_epoch = until_epoch
        self.from_epoch = from_epoch
        self.norms_only = norms_only
        self.paths: list[str] = []
        self.modules: list[nn.Module] = []
        self.parameters: list[nn.Parameter] = []

    def parts(self, encoder: Encoder) -> tuple[list[nn.Module], list[nn.Parameter]]:
        """The modules that stay in evaluation mode, and the parameters that get no gradient."""
        stages = encoder_stages(encoder)
        if self.stages is not None and self.stages > len(stages):
            raise ConfigurationError(
                f"Freeze: stages is {self.stages}, {type(encoder).__name__} has {len(stages)}, one for each map. Give "
                f"1 to {len(stages)}, or null for the whole encoder."
            )
        chosen = stages[: self.stages]
        modules = [module for stage in chosen for module in stage.modules]
        if self.norms_only:
            modules = [module for module in modules if isinstance(module, _NormBase)]
            return modules, [p for module in modules for p in module.parameters(recurse=False) if p.requires_grad]
        return modules, [p for stage in chosen for p in stage.parameters if p.requires_grad]

    def frozen_in(self, epoch: int) -> bool:
        """Whether it freezes in an epoch, counted from 0."""
        return epoch >= self.from_epoch and (self.until_epoch is None or epoch < self.until_epoch)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Freezes before the strategy wraps the module, so that it exchanges no gradients of what is frozen."""
        encoder = getattr(getattr(pl_module, "network", None), "encoder", None)
        if stage != "fit" or not isinstance(encoder, Encoder):
            return
        changes = self.until_epoch is not None or self.from_epoch > 0
        if changes and not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise ConfigurationError(
                f"Freeze: {type(trainer.strategy).__name__} cannot change what is trained from one epoch to the next. "
                "Leave until_epoch and from_epoch out, or train by trainer.strategy ddp or on one device."
            )
        # a second fit finds what the first one left frozen, which is not fixed by the encoder itself
        _set_trained(self.parameters, True)
        modules, self.parameters = self.parts(encoder)
        self.paths = [path for path, module in encoder.named_modules() if module in set(modules)]
        if self.frozen_in(trainer.current_epoch):
            _set_trained(self.parameters, False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freezes or unfreezes what the epoch asks for in which a run is resumed."""
        network = pl_module.network
        # by name: synchronised batch normalisation has taken the place of the modules that were there at first
        self.modules = [network.encoder.get_submodule(path) for path in self.paths]  # type: ignore[union-attr]
        self._turn(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freezes or unfreezes what the epoch asks for."""
        self._turn(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Lightning, and whoever evaluates in between, call `train()`."""
        self._rest(trainer)

    def _turn(self, trainer: pl.Trainer) -> None:
        frozen, free = _sorted_out(trainer)
        before = [parameter.requires_grad for parameter in (*frozen, *free)]
        _set_trained(frozen, False)
        _set_trained(free, True)
        changed = before != [parameter.requires_grad for parameter in (*frozen, *free)]
        if changed and isinstance(trainer.strategy, DDPStrategy):
            wrap_again(trainer.strategy)
        if self.frozen_in(trainer.current_epoch - 1):
            for module in self.modules:
                module.training = True
        for callback in _freezes(trainer):
            callback._rest(trainer)

    def _rest(self, trainer: pl.Trainer) -> None:
        if self.frozen_in(trainer.current_epoch):
            for module in self.modules:
                if module.training:
                    module.training = False


def _freezes(trainer: pl.Trainer) -> list[Freeze]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Freeze)]  # type: ignore[attr-defined]


def _sorted_out(trainer: pl.Trainer) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that some callback freezes in this epoch, and those that are governed but free."""
    governed: dict[int, nn.Parameter] = {}
    frozen: dict[int, nn.Parameter] = {}
    for callback in _freezes(trainer):
        own = {id(parameter): parameter for parameter in callback.parameters}
        governed |= own
        frozen |= own if callback.frozen_in(trainer.current_epoch) else {}
    return list(frozen.values()), [parameter for key, parameter in governed.items() if key not in frozen]


def _set_trained(parameters: Iterable[nn.Parameter], trained: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad = trained
        if not trained:
            parameter.grad = None


def wrap_again(strategy: DDPStrategy) -> None:
    """DDP exchanges the gradients of what was trained when it was made, no more and no less."""
    strategy.model = strategy.lightning_module
    gc.collect()  # the old wrapper's hooks go with it
    strategy.configure_ddp()
