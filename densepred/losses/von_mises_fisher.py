"""Normals with a measure of how sure they are."""

import math

import torch
from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.masked import mean_over_valid
from densepred.losses.normals import angle_between, known_normals
from densepred.sample import Kind

SMALLEST_CONCENTRATION = 0.01
"""What the concentration is at least, as in the authors' code."""


class VonMisesFisherLoss(Loss):
    """Negative log-likelihood of the true normal under a distribution around the predicted one, whose width is learnt.

    With the angle a between predicted and true normal and the concentration k, the fourth plane, the mean over valid
    pixels of

    - the angular von Mises-Fisher distribution: k a - ln(k^2 + 1) + ln(1 + exp(-k pi)), robust like `AngularLoss`;
    - with `angular=False` the von Mises-Fisher distribution: k (1 - cos a) - ln k + ln(1 - exp(-2 k)), whose best
      direction is that of `CosineLoss`.

    Both leave out the constant ln(2 pi), as the authors do, and may be negative: a sure and right network does better
    than any bound. `Normals(uncertainty=True)` has the four planes. Concentrations below 0.01 are taken as 0.01; the
    gradient of the direction grows with k.

    Missing normals (the zero vector, or one that is not finite) give exactly zero gradient; without any valid pixel the
    loss is 0. Computed in float32 under autocast.

    Args:
        angular: Which of the two.

    Shape:
        output: (B, 4, H, W), unit vectors and concentrations.
        target: (B, 3, H, W), unit vectors.

    Raises:
        ConfigurationError: If the output has not one plane more than the target.

    Reference:
        Bae, Budvytis, Cipolla. Estimating and Exploiting the Aleatoric Uncertainty in Surface Normal Estimation. ICCV
        2021. arXiv:2109.09881. (Their uncertainty-guided sampling of pixels belongs to a decoder of theirs; their code
        skips pixels within 2.6 degrees of right or opposite, where its acos fails.)

    Example:
        >>> sure = torch.tensor([0.0, 0.0, -1.0, 10.0]).view(1, 4, 1, 1)
        >>> VonMisesFisherLoss()(sure, sure[:, :3])  # -ln 101
        tensor(-4.6151)
    """

    kind = Kind.NORMALS

    def __init__(self, angular: bool = True) -> None:
        super().__init__()
        self.angular = angular

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Normals with concentrations, and true normals, to a scalar."""
        if target.shape[1] != 3 or output.shape != (target.shape[0], 4, *target.shape[2:]):
            raise ConfigurationError(
                "VonMisesFisherLoss: expected normals and concentrations (B, 4, H, W) and true normals (B, 3, H, W); "
                f"got {tuple(output.shape)} and {tuple(target.shape)}. Set uncertainty: true in the task Normals."
            )
        normals, target, valid = known_normals(output[:, :3], target)
        concentration = torch.where(valid, output[:, 3].to(normals.dtype), 1).clamp(min=SMALLEST_CONCENTRATION)
        angle = angle_between(normals, target)
        if self.angular:
            loss = concentration * angle - torch.log1p(concentration**2) + torch.log1p((-math.pi * concentration).exp())
        else:
            spread = -torch.expm1(-2 * concentration)
            # 1 - cos a, without losing the digits of a small angle
            loss = concentration * 2 * (angle / 2).sin().square() - concentration.log() + spread.log()
        return mean_over_valid(torch.where(valid, loss, 0), valid)

    def expected_angle(self, concentration: Tensor) -> Tensor:
        """Mean angle, in radians, between the predicted normal and one drawn from the distribution.

        Example:
            >>> VonMisesFisherLoss().expected_angle(torch.tensor([0.0, 100.0])).rad2deg()
            tensor([90.0000,  1.1458])
        """
        if self.angular:
            opposite = (-math.pi * concentration).exp()
            return 2 * concentration / (concentration**2 + 1) + math.pi * opposite / (1 + opposite)
        opposite = (-2 * concentration).exp()
        bessel: Tensor = torch.special.i0e(concentration)
        return math.pi * (bessel - opposite) / (1 - opposite)
