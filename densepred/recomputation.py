"""Computing in the backward pass again what the forward pass did not keep, without counting anything twice."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def recomputed(
    function: Callable[..., Any], module: nn.Module, *inputs: Any, random: bool = True, **options: Any
) -> Any:
    """`function(*inputs)`, of which the backward pass needs no more than its inputs: it calls it a second time.

    The second time random numbers are drawn as they were the first time, and the statistics of batch normalisation are
    left as they are.

    Args:
        function: What to run.
        module: Where the layers are that it runs.
        inputs: Passed on.
        random: Whether it draws random numbers; where it does not, their state need not be kept.
        options: Passed on.

    Reference:
        Chen, Xu, Zhang, Guestrin. Training Deep Nets with Sublinear Memory Cost. 2016. arXiv:1604.06174.

    Example:
        >>> import torch
        >>> norm, values = nn.BatchNorm2d(1), torch.arange(4.0).view(1, 1, 2, 2).requires_grad_()
        >>> recomputed(norm, norm, values).sum().backward()
        >>> norm.num_batches_tracked
        tensor(1)
    """
    return checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=random,
        context_fn=lambda: (nullcontext(), _Uncounted(module)),
        **options,
    )


class _Uncounted(AbstractContextManager[None]):
    """While it lasts, batch normalisations of a module update copies of their running statistics.

    A class, not a generator: a graph that is kept is walked, and therefore recomputed, more than once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._own: list[tuple[_NormBase, dict[str, Tensor | None]]] = []

    def __enter__(self) -> None:
        norms = [module for module in self.module.modules() if isinstance(module, _NormBase)]
        self._own = [(norm, dict(norm._buffers)) for norm in norms]
        for norm, buffers in self._own:
            for name, value in buffers.items():
                # copies rather than none: the repeated pass must keep as many tensors as the first
                norm._buffers[name] = None if value is None else value.clone()

    def __exit__(self, *error: object) -> None:
        for norm, buffers in self._own:
            norm._buffers.update(buffers)
        self._own = []
