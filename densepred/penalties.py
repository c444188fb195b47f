"""Terms of the training loss that belong to no task but to a part of the network itself."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from densepred.errors import ConfigurationError


class Penalised(ABC):
    """A part of a network, at any depth, that adds terms of its own to the training loss.

    An encoder that pays for the connections it uses is one. DensePredictor finds such parts wherever they are, adds
    their terms to the tasks' losses, unweighted by any balance, and logs each as `train/penalty/<name>`. Evaluation
    leaves them out: `val/loss` compares networks of any cost.

    Example:
        >>> class Shrinking(nn.Linear, Penalised):
        ...     def penalties(self):
        ...         return {"size": 0.1 * self.weight.abs().sum()}
        >>> sorted(penalties_of(nn.Sequential(nn.ReLU(), Shrinking(2, 2))))
        ['size']
    """

    @abstractmethod
    def penalties(self) -> dict[str, Tensor]:
        """Scalars by name, already weighted; empty where nothing is to be added."""


def penalties_of(network: nn.Module) -> dict[str, Tensor]:
    """The penalties of all parts of a network, by name.

    Raises:
        ConfigurationError: If two parts give a penalty the same name.
    """
    found: dict[str, Tensor] = {}
    for module in network.modules():
        if not isinstance(module, Penalised):
            continue
        for name, value in module.penalties().items():
            if name in found:
                raise ConfigurationError(
                    f"{type(module).__name__}: another part of the network has a penalty {name!r} already. Give each "
                    "a name of its own."
                )
            found[name] = value
    return found
