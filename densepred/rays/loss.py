"""The loss of a ray distance."""

import torch
from torch import Tensor


def log_l1(prediction: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean absolute difference of sign(x) log(1 + |x|) of both: errors near a surface count most.

    Points that are not known count nowhere; without any known point it is 0, with zero gradient.

    Shape:
        prediction, target, known (boolean): any, the same. returns: scalar.

    Reference:
        Kulkarni, Johnson, Fouhey. Directed Ray Distance Functions for 3D Scene Reconstruction. ECCV 2022.
        arXiv:2112.04481.

    Example:
        >>> round(log_l1(torch.tensor([1.0, 7.0]), torch.tensor([-1.0, 0.0]), torch.tensor([True, False])).item(), 4)
        1.3863
    """
    # where, not a product: what is not known may be infinite
    difference = _signed_log(prediction) - _signed_log(torch.where(known, target, prediction.detach()))
    return torch.where(known, difference.abs(), 0).sum() / known.sum().clamp(min=1)


def _signed_log(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()
