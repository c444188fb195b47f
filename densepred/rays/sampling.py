"""Where along its rays a ray distance is learned."""

import torch
from torch import Tensor

from densepred.errors import ConfigurationError


def distances_along(
    hits: Tensor,
    nearest: Tensor,
    farthest: Tensor,
    uniform: int = 256,
    near_hits: int = 256,
    spread: float = 0.4,
) -> Tensor:
    """Random distances along rays: some anywhere, some near surfaces, hidden ones as often as seen ones.

    Those near surfaces are drawn from a normal distribution about a hit of the ray, each of its hits as likely; they
    may lie outside of the range. On rays without a hit they lie anywhere, too.

    Args:
        hits: Of all surfaces, infinite for none.
        nearest: Where the range begins.
        farthest: Where it ends.
        uniform: How many anywhere in the range.
        near_hits: How many near surfaces.
        spread: Standard deviation about a hit, metres.

    Shape:
        hits: (..., K). nearest, farthest: (..., 1). returns: (..., uniform + near_hits).

    Raises:
        ConfigurationError: If there is nothing to draw, or the spread is not above 0.

    Reference:
        Kulkarni, Johnson, Fouhey. ECCV 2022. arXiv:2112.04481: 256 and 256 on a ray, 0.4 m.
    """
    if uniform < 0 or near_hits < 0 or uniform + near_hits < 1 or spread <= 0:
        raise ConfigurationError(
            f"distances_along: uniform {uniform}, near_hits {near_hits}, spread {spread}; expected 0 or more of each, "
            "1 or more together, and a spread above 0 metres."
        )
    share = torch.rand(*hits.shape[:-1], uniform + near_hits, device=hits.device, dtype=hits.dtype)
    anywhere = nearest + share * (farthest - nearest)
    if near_hits == 0:
        return anywhere
    real = hits.isfinite()
    chosen = torch.rand(*hits.shape[:-1], near_hits, device=hits.device) * real.sum(-1, keepdim=True)
    # real hits first, whatever order they come in
    ordered = hits.sort(-1).values
    about = ordered.gather(-1, chosen.long().clamp(max=hits.shape[-1] - 1))
    near = about + spread * torch.randn_like(about)
    return torch.cat([anywhere[..., :uniform], torch.where(about.isfinite(), near, anywhere[..., uniform:])], -1)
