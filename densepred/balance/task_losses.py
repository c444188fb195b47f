"""The losses of one step, and how strongly each pulls at the maps that all tasks share."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from densepred.blocks import full_precision

if TYPE_CHECKING:
    from densepred.balance.base import Balance


class TaskLosses:
    """What the tasks lose in one training step, while it can still be differentiated.

    Args:
        losses: A scalar a task, by name, auxiliary losses included.
        weights: The factor of each task in the total.
        maps: The encoder's maps as the decoders see them; see `branch`.
        penalties: Terms of the total that belong to no task, by name; no balance weighs them.

    Attributes:
        weights: The factor of each task in the total; with a balance its factor is in it.

    Example:
        >>> (maps,) = branch([torch.ones(2, 2, requires_grad=True)])
        >>> step = TaskLosses({"one": maps.sum(), "other": 3 * maps[0].sum()}, {"one": 1.0, "other": 0.5}, [maps])
        >>> step.total.item(), step.gradient_norms
        (7.0, tensor([2.0000, 4.2426]))
    """

    def __init__(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
        maps: Sequence[Tensor] = (),
        penalties: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.losses = dict(losses)
        self.penalties = dict(penalties)
        self.weights: dict[str, float | Tensor] = dict(weights)
        self.maps = [planes for planes in maps if planes.requires_grad]
        self.total = self._sum(list(self.losses.values()))

    def balance(self, balance: "Balance") -> Tensor:
        """The total as the balance has it; the tasks' own weights stand before its terms."""
        self.total = self._sum(list(balance(torch.stack(list(self.losses.values()))).unbind()))
        factors = zip(self.weights, balance.weights().unbind(), strict=True)
        self.weights = {name: self.weights[name] * factor for name, factor in factors}
        return self.total

    def _sum(self, terms: Sequence[Tensor]) -> Tensor:
        weighted = [weight * term for weight, term in zip(self.weights.values(), terms, strict=True)]
        return torch.stack([*weighted, *self.penalties.values()]).sum()

    @property
    def values(self) -> Tensor:
        """The losses as numbers (T,)."""
        return torch.stack([loss.detach() for loss in self.losses.values()])

    @cached_property
    def gradient_norms(self) -> Tensor:
        """The norm of each unweighted loss's gradient with regard to all maps at once (T,).

        It takes a backward pass through the decoders, a further one for each task where they share one, and none
        through the encoder. A task without a valid target has norm 0, as have all while the encoder is frozen.
        """
        return torch.stack([self._norm(loss) for loss in self.losses.values()])

    def _norm(self, loss: Tensor) -> Tensor:
        if not self.maps or not loss.requires_grad:
            return loss.new_zeros(())
        # a gradient is a mean over pixels: a power of two as large keeps half precision from rounding it to zero
        scale = 2.0 ** sum(planes.shape[0] * planes.shape[-2:].numel() for planes in self.maps[:1]).bit_length()
        found = torch.autograd.grad(loss, self.maps, torch.full_like(loss, scale), retain_graph=True, allow_unused=True)
        norms = [torch.linalg.vector_norm(full_precision(gradient)) for gradient in found if gradient is not None]
        return torch.linalg.vector_norm(torch.stack(norms)) / scale if norms else loss.new_zeros(())


def branch(maps: Sequence[Tensor]) -> list[Tensor]:
    """The same maps for the decoders: what is differentiated by these does not go through the encoder's finer stages.

    A coarse map is computed from a finer one; a gradient by the finer map itself would take that way too.
    """
    return [planes.view_as(planes) if planes.requires_grad else planes for planes in maps]
