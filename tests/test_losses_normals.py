"""Losses of normals: angles against acos in float64, likelihoods that integrate to 1, gradients that stay bounded."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import vonmises_fisher
from torch.nn import functional as F

from densepred.errors import ConfigurationError
from densepred.losses import AngularLoss, CosineLoss, NormalsL2Loss, SumLoss, VonMisesFisherLoss
from densepred.tasks import Normals

FACING = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1)


def with_gradient(loss, output, *arguments):
    output = output.detach().clone().requires_grad_()
    value = loss(output, *arguments)
    value.backward()
    return value.detach(), output.grad


def unit(*size):
    return F.normalize(torch.randn(size), dim=1)


def turned(angle, dtype=torch.float32):
    """A unit vector at an angle (radians) from the one that faces the camera."""
    return torch.tensor([math.sin(angle), 0.0, -math.cos(angle)], dtype=dtype).view(1, 3, 1, 1)


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
def test_losses_of_normals_are_functions_of_the_angle(degrees):
    angle = math.radians(degrees)
    for length in (1, 5):
        assert CosineLoss()(length * turned(angle), FACING).item() == pytest.approx(1 - math.cos(angle), abs=1e-6)
        assert AngularLoss()(length * turned(angle), FACING).item() == pytest.approx(angle, abs=1e-6)
    assert NormalsL2Loss()(turned(angle), FACING).item() == pytest.approx(2 - 2 * math.cos(angle), abs=1e-6)


def test_the_l2_loss_is_summed_over_components_and_averaged_over_pixels():
    output, target = torch.randn(2, 3, 4, 5), unit(2, 3, 4, 5)
    target[:, :, 0] = 0
    expected = ((output - target) ** 2).numpy().sum(1)[:, 1:].mean()
    assert NormalsL2Loss()(output, target).item() == pytest.approx(expected, rel=1e-6)


def test_the_angular_loss_and_its_gradient_are_those_of_acos_where_that_is_defined():
    output, target = unit(2, 3, 8, 9).double(), unit(2, 3, 8, 9).double()
    cosine = lambda x: F.normalize(x, dim=1).mul(F.normalize(target, dim=1)).sum(1)  # noqa: E731
    expected = with_gradient(lambda x: cosine(x).acos().mean(), output)
    output, unit_target = F.normalize(output, dim=1), F.normalize(target, dim=1)
    torch.testing.assert_close(with_gradient(AngularLoss(), output, unit_target), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("angle", [1e-7, 1e-5, 1e-3])
def test_small_angles_keep_their_digits_in_float32(angle):
    """acos of a float32 cosine is 0 or 3e-4 there."""
    assert AngularLoss()(turned(angle), FACING).item() == pytest.approx(angle, rel=1e-3)
    assert AngularLoss()(turned(math.pi - angle), FACING).item() == pytest.approx(math.pi - angle, rel=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-20, 1e-7, 1e-3, 1.0, math.pi - 1e-3, math.pi])
def test_the_angular_gradient_is_bounded_and_turns_the_normal_towards_the_target(angle):
    output = turned(angle)
    value, gradient = with_gradient(AngularLoss(), output, FACING)
    assert gradient.isfinite().all()
    assert gradient.norm() <= 1 + 1e-3
    if 1e-7 <= angle <= math.pi - 1e-3:
        assert gradient.norm() == pytest.approx(1, rel=2e-2)
        assert AngularLoss()(F.normalize(output - 0.5 * angle * gradient, dim=1), FACING) < value


@pytest.mark.parametrize("output", [FACING, -FACING])
def test_the_angular_gradient_is_zero_at_exactly_0_and_180_degrees(output):
    _, gradient = with_gradient(AngularLoss(), output, FACING)
    assert (gradient == 0).all()


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-8, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("loss", "most"), [(CosineLoss(), 1), (AngularLoss(), 2)])
def test_losses_of_directions_have_bounded_gradients_at_any_length(length, loss, most):
    for _ in range(5):
        _, gradient = with_gradient(loss, length * unit(1, 3, 1, 1), unit(1, 3, 1, 1))
        assert gradient.isfinite().all()
        assert gradient.norm() <= most + 1e-5


# von Mises-Fisher


def likelihood(loss, angle, concentration):
    output = torch.cat([turned(0.0, torch.float64), torch.full((1, 1, 1, 1), concentration, dtype=torch.float64)], 1)
    return math.exp(-loss(output, turned(angle, torch.float64)).item()) / (2 * math.pi)


@pytest.mark.parametrize("angular", [True, False])
@pytest.mark.parametrize("concentration", [0.05, 1.0, 8.0, 60.0])
def test_the_likelihood_integrates_to_one_over_the_sphere(angular, concentration):
    loss = VonMisesFisherLoss(angular)
    total, _ = quad(lambda a: likelihood(loss, a, concentration) * 2 * math.pi * math.sin(a), 0, math.pi)
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("concentration", [0.05, 1.0, 8.0, 60.0])
def test_without_angular_the_likelihood_is_scipys_von_mises_fisher(concentration):
    for angle in (0.0, 0.3, 2.0, math.pi):
        expected = vonmises_fisher([0, 0, -1], concentration).pdf(turned(angle, torch.float64).flatten().numpy())
        assert likelihood(VonMisesFisherLoss(False), angle, concentration) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.2, 1.5, math.pi])
@pytest.mark.parametrize("concentration", [0.05, 3.0])
def test_the_angular_loss_is_baes_formula(angle, concentration):
    k = concentration
    expected = -math.log(k**2 + 1) + k * angle + math.log(1 + math.exp(-k * math.pi))
    output = torch.cat([turned(0.0), torch.full((1, 1, 1, 1), k)], 1)
    assert VonMisesFisherLoss()(output, turned(angle)).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("angular", [True, False])
@pytest.mark.parametrize("concentration", [0.05, 1.0, 8.0, 60.0])
def test_the_expected_angle_is_the_mean_over_the_distribution(angular, concentration):
    loss = VonMisesFisherLoss(angular)
    mean, _ = quad(lambda a: a * likelihood(loss, a, concentration) * 2 * math.pi * math.sin(a), 0, math.pi)
    assert loss.expected_angle(torch.tensor(concentration, dtype=torch.float64)).item() == pytest.approx(mean, rel=1e-5)


def test_the_task_gives_unit_vectors_with_concentrations_and_predicts_normals():
    task = Normals(uncertainty=True)
    planes = 3 * torch.randn(2, 4, 6, 7)
    output = task.activate(planes)
    assert task.out_channels == 4
    torch.testing.assert_close(output[:, :3], F.normalize(planes[:, :3], dim=1))
    plane = planes[:, 3].numpy()
    elu = np.where(plane > 0, plane, np.exp(plane) - 1)
    torch.testing.assert_close(output[:, 3].numpy(), (elu + 1.01).astype(np.float32))
    torch.testing.assert_close(task.predict(output), output[:, :3])
    assert task.expected_angle(output).shape == (2, 1, 6, 7)
    assert (task.expected_angle(output) <= 90).all()


def test_the_concentration_learns_how_far_normals_are_off():
    """With normals held, the likelihood is greatest where the expected angle is that of the data."""
    angle = 0.25 * torch.rand(1, 1, 8, 8)
    target = torch.cat([angle.sin(), torch.zeros_like(angle), -angle.cos()], 1)
    task = Normals(uncertainty=True)
    plane = torch.zeros(1, 1, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([plane], lr=0.5)
    for _ in range(300):
        planes = torch.cat([FACING.expand(1, 3, 8, 8), plane.expand(1, 1, 8, 8)], 1)
        optimizer.zero_grad()
        task.loss_from_planes(planes, {"image": torch.zeros(1, 3, 8, 8), "normals": target}).backward()
        optimizer.step()
    expected = task.expected_angle(task.activate(planes.detach())).mean().item()
    assert expected == pytest.approx(angle.rad2deg().mean().item(), rel=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": VonMisesFisherLoss()}, "VonMisesFisherLoss with uncertainty=false.*both or neither"),
        ({"loss": CosineLoss(), "uncertainty": True}, "CosineLoss with uncertainty=true.*both or neither"),
    ],
)
def test_concentrations_and_their_loss_come_together(options, words):
    with pytest.raises(ConfigurationError, match=words):
        Normals(**options)


def test_three_planes_have_no_concentration():
    with pytest.raises(ConfigurationError, match=r"\(B, 4, H, W\).*got \(1, 3, 1, 1\).*uncertainty: true"):
        VonMisesFisherLoss()(FACING, FACING)
    with pytest.raises(ConfigurationError, match="does not know how sure it is"):
        Normals().expected_angle(FACING)


@pytest.mark.parametrize("loss", [AngularLoss(), NormalsL2Loss(), SumLoss([CosineLoss(), AngularLoss()], [1.0, 0.5])])
def test_every_loss_of_normals_trains_them(loss):
    task = Normals(loss=loss)
    batch = {"image": torch.zeros(2, 3, 8, 10), "normals": unit(2, 3, 8, 10)}
    planes = torch.randn(2, 3, 8, 10, requires_grad=True)
    optimizer = torch.optim.Adam([planes], lr=0.1)
    losses = []
    for _ in range(60):
        losses.append(task.loss_from_planes(planes, batch))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
