"""A ray distance as a picture: one row of an image seen from above, with the surfaces in it."""

import numpy as np
import torch
from torch import Tensor

BEHIND, AT, AHEAD = (178, 24, 43), (247, 247, 247), (33, 102, 172)


def draw_slice(values: Tensor, limit: float = 1.0) -> np.ndarray:
    """Ray distances of a row of rays: blue before a surface, red behind it, white on it; the camera is below.

    Args:
        values: Metres; those that are not finite are grey.
        limit: Metres at which the colours are full.

    Shape:
        values: (R, P), a ray a column of the picture. returns: (P, R, 3) uint8.

    Example:
        >>> draw_slice(torch.tensor([[1.0, -1.0]]))[:, 0].tolist()
        [[178, 24, 43], [33, 102, 172]]
    """
    known = values.isfinite()
    share = torch.where(known, values, 0).clamp(-limit, limit).div(limit).T.flip(0).cpu().unsqueeze(-1)
    ends = torch.where(share < 0, torch.tensor(BEHIND), torch.tensor(AHEAD)).float()
    colours = torch.tensor(AT) + share.abs() * (ends - torch.tensor(AT))
    colours[~known.T.flip(0).cpu()] = 128
    return colours.round().to(torch.uint8).numpy()


def mark_surfaces(
    picture: np.ndarray, depths: Tensor, near: float, far: float, colour: tuple[int, int, int] = (0, 0, 0)
) -> np.ndarray:
    """The picture of a slice with surfaces drawn in, as dots of two samples; those out of the range are left out.

    Args:
        picture: As `draw_slice` makes it, of samples from `near` to `far`.
        depths: Of the surfaces, in the measure of the samples; infinite for none.
        near: Of the first sample.
        far: Of the last.
        colour: RGB.

    Shape:
        picture: (P, R, 3). depths: (R, M). returns: as the picture.
    """
    marked = picture.copy()
    count = len(picture)
    row = (depths.cpu() - near) / (far - near) * (count - 1)
    ray, which = torch.nonzero((row >= 0) & (row <= count - 1), as_tuple=True)
    for ahead in (0, 1):
        place = (count - 1 - row[ray, which].round().long() - ahead).clamp(0, count - 1)
        marked[place.numpy(), ray.numpy()] = colour
    return marked
