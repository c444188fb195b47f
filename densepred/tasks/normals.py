"""Normals: a unit vector at every pixel."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.normals import CosineLoss
from densepred.losses.von_mises_fisher import SMALLEST_CONCENTRATION, VonMisesFisherLoss
from densepred.metrics.normals import NormalsMetrics, angle_degrees
from densepred.sample import Kind, valid_normals
from densepred.tasks.base import Task, parts
from densepred.tasks.pictures import fixed_scale, heat, shades

_SHORTEST = 1e-2
"""Planes shorter than this are not stretched to length 1, so that no gradient grows beyond 100."""


class Normals(Task):
    """Surface normals from three planes, in the camera's frame (x right, y down, z forward; they face the camera).

    The output is planes / |planes|, a unit vector. Where planes are shorter than 0.01, as with a zero-initialised
    decoder, they are divided by 0.01 instead: the gradient stays finite and leads away from there. The prediction is
    always a unit vector; where planes are zero, the one that faces the camera, (0, 0, -1).

    With `uncertainty` a fourth plane p says how sure the normal is: the output has its concentration, ELU(p) + 1.01,
    which `VonMisesFisherLoss` learns; `expected_angle` tells it in degrees. The prediction remains the normal.

    Missing normals (the zero vector) neither train nor count, and are drawn grey.

    Args:
        name: Sample key, output key and metric prefix.
        loss: Takes output and target; by default one minus the cosine, with `uncertainty` the angular von Mises-Fisher
            loss.
        weight: Factor of its loss in the sum over tasks.
        uncertainty: Predict how sure each normal is, too.

    Shape:
        planes: (B, 3, H, W), or (B, 4, H, W) with `uncertainty`.
        output: the same; unit vectors, and concentrations.
        prediction, target: (B, 3, H, W), unit vectors.

    Raises:
        ConfigurationError: If the loss needs concentrations and there are none, or the other way round.

    Reference:
        Bae, Budvytis, Cipolla. Estimating and Exploiting the Aleatoric Uncertainty in Surface Normal Estimation. ICCV
        2021. arXiv:2109.09881 (the concentration).

    Example:
        >>> Normals().activate(torch.tensor([0.0, -3.0, -4.0]).view(1, 3, 1, 1)).flatten()
        tensor([ 0.0000, -0.6000, -0.8000])
    """

    kind = Kind.NORMALS
    monitor = ("mean_angle", "min")
    shown = ("mean_angle",)

    def __init__(
        self, name: str = "normals", loss: Loss | None = None, weight: float = 1.0, uncertainty: bool = False
    ) -> None:
        if loss is None:
            loss = VonMisesFisherLoss() if uncertainty else CosineLoss()
        sure = [part for part in parts(loss) if isinstance(part, VonMisesFisherLoss)]
        if sure != ([loss] if uncertainty else []):
            raise ConfigurationError(
                f"Normals: {type(loss).__name__} with uncertainty={str(uncertainty).lower()}. Concentrations, the "
                "fourth plane, are learnt by VonMisesFisherLoss and by no other: give both or neither."
            )
        super().__init__(name, 4 if uncertainty else 3, loss, weight)
        self.uncertainty = uncertainty

    def activate(self, planes: Tensor) -> Tensor:
        """Planes to unit vectors, and concentrations."""
        normals = planes[:, :3]
        length: Tensor = torch.linalg.vector_norm(normals, dim=1, keepdim=True)
        normals = normals / length.clamp(min=_SHORTEST)
        if not self.uncertainty:
            return normals
        return torch.cat([normals, F.elu(planes[:, 3:]) + 1 + SMALLEST_CONCENTRATION], dim=1)

    def expected_angle(self, output: Tensor) -> Tensor:
        """How far the network thinks its normals are off, in degrees (B, 1, H, W); with `uncertainty` only."""
        if not isinstance(self.loss, VonMisesFisherLoss):
            raise ConfigurationError(f"Task {self.name!r} does not know how sure it is. Set uncertainty: true.")
        return self.loss.expected_angle(output[:, 3:]).rad2deg()

    def predict(self, output: Tensor) -> Tensor:
        """Unit vectors, wherever the output points."""
        output = output[:, :3]
        length = torch.linalg.vector_norm(output, dim=1, keepdim=True)
        facing = torch.tensor([0.0, 0.0, -1.0], dtype=output.dtype, device=output.device).view(1, 3, 1, 1)
        return torch.where(length == 0, facing, output / length)

    def evidence(self, output: Tensor) -> Tensor:
        """Unit vectors; a mean of them is shorter the less they agree, and `decide` makes it one of length 1 again."""
        return self.predict(output)

    def unflipped(self, evidence: Tensor) -> Tensor:
        """A mirror turns normals around as well: x changes its sign."""
        mirrored = evidence.flip(-1)
        return torch.cat([-mirrored[:, :1], mirrored[:, 1:]], dim=1)

    def known(self, target: Tensor) -> Tensor:
        """True where the normal is known (B, 1, H, W)."""
        return valid_normals(target).unsqueeze(1)

    def constant_prediction(self, statistic: Tensor, target: Tensor) -> Tensor:
        """The mean direction, which has the greatest mean cosine to all normals of the set."""
        return self.decide(statistic[0].to(target).view(1, 3, 1, 1)).expand(target.shape)

    def metrics(self, stage: str) -> Metric:
        """Angles, pooled over all pixels."""
        return NormalsMetrics()

    def render(self, prediction: Tensor) -> Tensor:
        """Red to the right, green up, blue towards the camera: a wall that faces us is light blue."""
        known = valid_normals(prediction)[:, None]
        shown = torch.tensor([1.0, -1.0, -1.0], device=prediction.device).view(1, 3, 1, 1) * prediction
        return shades((shown + 1) / 2, known)

    def panel(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Target and prediction as colours, and the angle between them."""
        known = valid_normals(target)[:, None]
        angle = angle_degrees(prediction, target)[:, None]
        return {
            "target": self.render(target),
            "prediction": self.render(prediction),
            "angle error 0 to 60 degrees": heat(angle, known, fixed_scale(0.0, 60.0), "inferno"),
        }
