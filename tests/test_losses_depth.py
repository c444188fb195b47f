"""Losses of depth and of plain numbers: values against closed forms and numpy, and the ordinal way to depth."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from densepred.errors import ConfigurationError
from densepred.losses import (
    AbsoluteErrorLoss,
    BerHuLoss,
    L1Loss,
    L2Loss,
    OrdinalLoss,
    ScaleInvariantGradientLoss,
    ScaleInvariantLoss,
    SILogLoss,
    SquaredErrorLoss,
    SumLoss,
)
from densepred.losses.ordinal import ordinal_depth, spacing_increasing_edges
from densepred.tasks import Depth


def with_gradient(loss, output, *arguments):
    output = output.detach().clone().requires_grad_()
    value = loss(output, *arguments)
    value.backward()
    return value.detach(), output.grad


def depths(*size):
    """Predicted and true depth, of which about a fifth is missing, and the errors of logarithms, NaN where missing."""
    output, target = torch.rand(size, dtype=torch.float64) * 4 + 0.2, torch.rand(size, dtype=torch.float64) * 4 + 0.2
    target[torch.rand(size) < 0.2] = 0
    error = np.where(target > 0, output.log() - target.clamp(min=1e-9).log(), np.nan)
    return output, target, error


def row(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


@pytest.mark.parametrize(("loss", "power"), [(L1Loss, 1), (L2Loss, 2)])
def test_l1_and_l2_compare_metres_or_their_logarithms(loss, power):
    output, target = row(1.0, 8.0, 7.0), row(2.0, 4.0, 0.0)
    assert loss()(output, target).item() == pytest.approx((1 + 4**power) / 2)
    assert loss(log=True)(output, target).item() == pytest.approx(math.log(2) ** power)


@pytest.mark.parametrize(("loss", "power"), [(AbsoluteErrorLoss, 1), (SquaredErrorLoss, 2)])
def test_errors_of_any_planes_count_zero_and_negative_numbers(loss, power):
    output, target = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, -2.0, math.nan])
    assert loss()(output, target).item() == pytest.approx((1 + 3**power) / 2)


@pytest.mark.parametrize(("loss", "best"), [(AbsoluteErrorLoss, np.median), (SquaredErrorLoss, np.mean)])
def test_absolute_errors_lead_to_the_median_and_squared_ones_to_the_mean(loss, best):
    values = torch.tensor([0.0, 1.0, 2.0, 3.0, 50.0])
    output = torch.tensor(best(values.numpy())).expand(5).clone().requires_grad_()
    loss()(output, values).backward()
    assert output.grad.sum().item() == pytest.approx(0, abs=1e-6)


# berHu


def test_berhu_is_lainas_formula_with_the_threshold_over_the_batch():
    output, target, _ = depths(3, 1, 5, 6)
    error = (output - target)[target > 0].abs().numpy()
    c = 0.2 * error.max()
    expected = np.where(error <= c, error, (error**2 + c**2) / (2 * c)).mean()
    assert BerHuLoss()(output, target).item() == pytest.approx(expected)
    share = 0.7 * error.max()
    expected = np.where(error <= share, error, (error**2 + share**2) / (2 * share)).mean()
    assert BerHuLoss(share=0.7)(output, target).item() == pytest.approx(expected)


def test_the_gradient_of_berhu_is_that_of_its_pieces_and_at_most_one_over_the_share():
    output, target = row(2.0, 1.2, 3.0, 0.9, 9.0), row(1.0, 1.0, 1.0, 1.0, 0.0)
    _, gradient = with_gradient(BerHuLoss(share=0.25), output, target)  # c = 0.5
    torch.testing.assert_close(4 * gradient, row(1 / 0.5, 1.0, 2 / 0.5, -1.0, 0.0))


def test_berhu_of_a_perfect_prediction_is_zero_with_zero_gradient():
    value, gradient = with_gradient(BerHuLoss(), row(1.0, 2.0), row(1.0, 2.0))
    assert value == 0
    assert (gradient == 0).all()


# Scale-invariant


@pytest.mark.parametrize("balance", [0.0, 0.5, 0.85, 1.0])
def test_silog_is_btss_formula_over_the_batch(balance):
    output, target, error = depths(3, 1, 5, 6)
    expected = 10 * math.sqrt(np.nanmean(error**2) - balance * np.nanmean(error) ** 2)
    assert SILogLoss(balance)(output, target).item() == pytest.approx(expected)
    assert SILogLoss(balance, factor=3.0)(output, target).item() == pytest.approx(0.3 * expected)


def test_silog_with_balance_0_is_the_rmse_of_logarithms():
    output, target, _ = depths(2, 1, 5, 6)
    expected = L2Loss(log=True)(output, target).sqrt()
    torch.testing.assert_close(SILogLoss(0.0, 1.0)(output, target), expected)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_silog_has_finite_gradients_where_all_is_right_or_only_the_scale_is_wrong(scale):
    target = torch.rand(2, 1, 4, 5) + 1
    for balance in (0.0, 0.85, 1.0):
        value, gradient = with_gradient(SILogLoss(balance), scale * target, target)
        assert value.item() == pytest.approx(10 * math.sqrt(1 - balance) * math.log(scale), abs=1e-5)
        assert gradient.isfinite().all()
        # in ln output its length is at most factor / sqrt(n)
        assert (gradient * scale * target).norm() <= 10 / math.sqrt(target.numel()) * (1 + 1e-4)


def batch_form(error, balance):
    """Eigen and Fergus's code: [sum_i n_i sum d^2 - balance * sum_i (sum d)^2] / sum n_i^2."""
    each = [image[np.isfinite(image)] for image in error]
    top = sum(len(d) * (d**2).sum() - balance * d.sum() ** 2 for d in each)
    return top / sum(len(d) ** 2 for d in each)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_scale_invariant_loss_is_eigens_batch_form(balance):
    output, target, error = depths(3, 1, 5, 6)
    assert ScaleInvariantLoss(balance)(output, target).item() == pytest.approx(batch_form(error, balance))


def test_the_scale_invariant_loss_of_one_image_is_the_papers_formula_over_pairs():
    """Eigen 2014, equation 2 (balance 1): mean over all pairs of (d_i - d_j)^2 / 2."""
    output, target, error = depths(1, 1, 4, 5)
    known = error[np.isfinite(error)]
    pairs = (known[:, None] - known[None]) ** 2 / 2
    assert ScaleInvariantLoss(balance=1.0)(output, target).item() == pytest.approx(pairs.mean())


def test_images_with_as_many_valid_pixels_are_averaged():
    output, target = torch.rand(3, 1, 4, 5) + 0.5, torch.rand(3, 1, 4, 5) + 0.5
    loss = ScaleInvariantLoss()
    each = torch.stack([loss(output[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(output, target), each.mean())


def test_a_wrong_scale_of_each_image_costs_nothing_at_balance_1():
    target = torch.rand(2, 1, 4, 5, dtype=torch.float64) + 1
    scaled = target * torch.tensor([0.5, 3.0]).view(2, 1, 1, 1)
    assert ScaleInvariantLoss(balance=1.0)(scaled, target).item() == pytest.approx(0, abs=1e-12)
    assert SILogLoss(balance=1.0)(scaled[:1], target[:1]).item() == pytest.approx(0, abs=1e-6)
    assert ScaleInvariantLoss()(scaled, target) > 0.1


@pytest.mark.parametrize("loss", [ScaleInvariantLoss(), ScaleInvariantGradientLoss()])
def test_an_offset_of_1_in_log_space_costs_one_half(loss):
    target = torch.rand(2, 1, 4, 5) + 0.5
    assert loss(math.e * target, target).item() == pytest.approx(0.5, rel=1e-5)


def test_the_loss_of_eigen_2015_adds_the_slopes_of_valid_pairs():
    output, target, error = depths(3, 1, 5, 6)
    slopes = sum(np.nanmean(np.diff(error, axis=axis) ** 2) for axis in (-1, -2))
    expected = batch_form(error, 0.5) + slopes
    assert ScaleInvariantGradientLoss()(output, target).item() == pytest.approx(expected)


def test_a_ramp_costs_its_slope():
    ramp = torch.arange(6.0).mul(0.1).exp().expand(1, 1, 4, 6)
    loss = ScaleInvariantGradientLoss(balance=1.0)(ramp, torch.ones(1, 1, 4, 6))
    assert loss.item() == pytest.approx(0.01 * np.var(np.arange(6)) + 0.01, rel=1e-4)


def test_huge_pictures_keep_the_losses_digits():
    """An offset with a small ripple: the textbook difference of squares would lose the variance in float32."""
    ripple = 1e-3 * torch.randn(1, 1, 1000, 1000, dtype=torch.float64)
    output, target = (3 + ripple).exp().float(), torch.ones(1, 1, 1000, 1000)
    loss = ScaleInvariantLoss(balance=1.0)(output, target)
    assert loss.item() == pytest.approx(ripple.var(correction=0).item(), rel=1e-3)


# Ordinal


def test_bins_are_dorns_spacing_increasing_ones():
    """t_i = exp(ln a + i / K ln(b / a)) after the shift that makes a = 1 (Fu et al., section 3.1)."""
    low, high, bins = 0.3, 9.0, 7
    shift = 1 - low
    a, b = low + shift, high + shift
    expected = [math.exp(math.log(a) + math.log(b / a) * i / bins) - shift for i in range(bins + 1)]
    assert spacing_increasing_edges(bins, low, high).tolist() == pytest.approx(expected)


def test_the_ordinal_loss_is_dorns_double_sum():
    low, high, bins = 0.3, 9.0, 7
    logits, target = torch.randn(2, bins, 4, 5), 11 * torch.rand(2, 1, 4, 5)
    target[..., 0] = 0
    target[..., 1] = torch.tensor([0.1, 9.0, 10.5, 0.3])  # beyond either end counts as the first or last bin
    edges = spacing_increasing_edges(bins, low, high).numpy()
    probability = expit(logits.numpy().astype(float))
    losses = []
    for b, y, x in np.argwhere(target[:, 0].numpy() > 0):
        label = np.clip(np.searchsorted(edges, target[b, 0, y, x].item(), side="right") - 1, 0, bins - 1)
        p = probability[b, :, y, x]
        losses.append(-np.log(p[:label]).sum() - np.log(1 - p[label:]).sum())
    assert OrdinalLoss(low, high)(logits, target).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_answers_lead_to_the_middle_of_their_bin():
    edges = spacing_increasing_edges(4, 1.0, 9.0).tolist()
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    for yes in range(5):
        logits = torch.tensor([1.0] * yes + [-1.0] * (4 - yes)).view(1, 4, 1, 1)
        assert ordinal_depth(logits, 1.0, 9.0).item() == pytest.approx(middles[min(yes, 3)])


def test_ordinal_depth_learns_depth_to_half_a_bin():
    task = Depth(bins=24, min_depth=0.5, max_depth=10.0)
    target = torch.rand(2, 1, 8, 10) * 9.3 + 0.6
    batch = {"image": torch.zeros(2, 3, 8, 10), "depth": target}
    planes = torch.zeros(2, task.out_channels, 8, 10, requires_grad=True)
    assert task.loss_from_planes(planes, batch).item() == pytest.approx(24 * math.log(2), rel=1e-5)
    optimizer = torch.optim.Adam([planes], lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        task.loss_from_planes(planes, batch).backward()
        optimizer.step()
    prediction = task.predict_from_planes(planes.detach(), (8, 10))
    edges = spacing_increasing_edges(24, 0.5, 10.0)
    widths = edges.diff()[torch.bucketize(target, edges, right=True) - 1]
    assert prediction.shape == target.shape
    assert ((prediction - target).abs() <= widths / 2 + 1e-5).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bins": 1}, "bins must be at least 2; got 1"),
        ({"bins": 20, "log": True}, "bins and log exclude each other"),
        ({"bins": 20, "loss": SILogLoss()}, "20 answers, not metres, which SILogLoss cannot compare"),
        ({"bins": 20, "loss": SumLoss([OrdinalLoss(), L1Loss()])}, "which SumLoss cannot compare"),
        (
            {"bins": 20, "loss": OrdinalLoss(1.0, 80.0)},
            "go from 1.0 to 80.0 metres, those of the task from 0.001 to 10.0",
        ),
        ({"loss": OrdinalLoss()}, "one question a bin. Set `bins`"),
    ],
)
def test_bins_and_losses_that_do_not_fit_are_refused_when_the_task_is_built(options, words):
    with pytest.raises(ConfigurationError, match=words):
        Depth(**options)


def test_an_ordinal_loss_of_the_tasks_range_may_be_given():
    assert Depth(bins=20, min_depth=1.0, max_depth=80.0, typical=15.0, loss=OrdinalLoss(1.0, 80.0)).out_channels == 20


def test_one_plane_is_no_row_of_questions():
    with pytest.raises(ConfigurationError, match=r"one a bin, of at least 2.*Depth\(bins=80\)"):
        OrdinalLoss()(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize(
    "loss",
    [L1Loss(), BerHuLoss(), BerHuLoss(log=True), SILogLoss(), ScaleInvariantLoss(), ScaleInvariantGradientLoss()],
)
@pytest.mark.parametrize("log", [False, True])
def test_every_loss_of_metres_trains_depth(loss, log):
    task = Depth(loss=loss, log=log)
    batch = {"image": torch.zeros(2, 3, 8, 10), "depth": torch.rand(2, 1, 8, 10) * 8 + 0.5}
    planes = torch.zeros(2, 1, 8, 10, requires_grad=True)
    optimizer = torch.optim.Adam([planes], lr=0.1)
    losses = []
    for _ in range(60):
        losses.append(task.loss_from_planes(planes, batch))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
