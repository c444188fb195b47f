import math

import numpy as np
import pytest
import torch

from densepred.errors import ConfigurationError
from densepred.schedules import Constant, Cosine, ExponentialDecay, InverseDecay, OneCycle, PolyLR, Step


def rates(schedule, optimizer, steps):
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return seen


def two_groups():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    return torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 1.0}])


def test_poly_follows_its_formula_and_ends_at_zero():
    optimizer = two_groups()
    schedule = PolyLR(optimizer, total_steps=10, power=0.9)
    seen = rates(schedule, optimizer, 10)
    assert [row[1] for row in seen] == pytest.approx([(1 - step / 10) ** 0.9 for step in range(10)])
    assert optimizer.param_groups[1]["lr"] == 0


def test_warm_up_rises_linearly_to_the_base_rate():
    optimizer = two_groups()
    seen = rates(PolyLR(optimizer, total_steps=20, warmup_steps=4), optimizer, 5)
    assert [row[1] for row in seen] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_exponential_decay_equals_torchs_stepped_once_an_epoch():
    optimizer = two_groups()
    ours = rates(ExponentialDecay(optimizer, total_steps=21, factor=0.9, every=7), optimizer, 21)
    reference = two_groups()
    theirs = rates(torch.optim.lr_scheduler.ExponentialLR(reference, gamma=0.9), reference, 3)
    for row, expected in zip(ours, [row for row in theirs for _ in range(7)], strict=True):
        assert row == pytest.approx(expected)


def test_exponential_decay_falls_no_lower_than_its_floor():
    optimizer = two_groups()
    seen = rates(ExponentialDecay(optimizer, total_steps=9, factor=0.5, every=2, floor=0.2), optimizer, 9)
    assert [row[1] for row in seen] == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2])
    with pytest.raises(ConfigurationError, match="floor is 2; expected a share of the base rate"):
        ExponentialDecay(two_groups(), 9, floor=2)


def test_inverse_decay_halves_the_rate_after_the_inverse_of_the_decay():
    optimizer = two_groups()
    seen = rates(InverseDecay(optimizer, total_steps=13, decay=0.25), optimizer, 13)
    assert [seen[step][1] for step in (0, 4, 12)] == pytest.approx([1, 1 / 2, 1 / 4])
    assert all(math.isclose(low / high, 0.1) for low, high in seen)
    with pytest.raises(ConfigurationError, match="decay is -1; expected 0 or more"):
        InverseDecay(two_groups(), 13, decay=-1)


@pytest.mark.parametrize("options", [{"factor": 0.0}, {"every": 0}])
def test_exponential_decay_refuses_what_is_no_decay(options):
    with pytest.raises(ConfigurationError, match="expected a factor above 0, and 1 or more steps"):
        ExponentialDecay(two_groups(), 10, **options)


def test_one_cycle_equals_torch_for_one_group_and_keeps_the_ratio_of_two():
    optimizer = two_groups()
    seen = rates(OneCycle(optimizer, total_steps=41, warmup=0.25), optimizer, 41)
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        reference, max_lr=1.0, total_steps=41, pct_start=0.25, div_factor=25, final_div_factor=1e4 / 25,
        cycle_momentum=False,
    )  # fmt: skip
    # torch puts its top one step earlier (at pct_start * total - 1), so the curves are compared at their landmarks
    expected = [row[0] for row in rates(theirs, reference, 41 - 1)]
    ours = [row[1] for row in seen]
    assert ours[0] == pytest.approx(expected[0])
    assert max(ours) == pytest.approx(max(expected), abs=1e-2)
    assert ours[-1] == pytest.approx(1e-4)
    assert all(math.isclose(low / high, 0.1) for low, high in seen)


def test_cosine_equals_torchs_annealing_to_the_same_floor():
    optimizer, reference = two_groups(), two_groups()
    ours = rates(Cosine(optimizer, total_steps=17), optimizer, 17)
    theirs = rates(torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=17), reference, 17)
    assert np.array(ours) == pytest.approx(np.array(theirs))
    optimizer = two_groups()
    schedule = Cosine(optimizer, total_steps=10, floor=0.25)
    rates(schedule, optimizer, 10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.25])


def test_steps_equal_torchs_at_the_milestones_that_are_shares_of_the_training():
    optimizer, reference = two_groups(), two_groups()
    ours = rates(Step(optimizer, total_steps=40, milestones=(0.5, 0.75), factor=0.2), optimizer, 40)
    multi = torch.optim.lr_scheduler.MultiStepLR(reference, milestones=[20, 30], gamma=0.2)
    assert np.array(ours) == pytest.approx(np.array(rates(multi, reference, 40)))


@pytest.mark.parametrize("options", [{"milestones": (2000,)}, {"factor": 0.0}])
def test_steps_refuse_milestones_that_are_no_shares(options):
    with pytest.raises(ConfigurationError, match="expected shares of the training"):
        Step(two_groups(), 10, **options)


SHAPES = {
    PolyLR: lambda step, total: (1 - (step - 4) / (total - 4)) ** 0.9,
    Cosine: lambda step, total: (1 + math.cos(math.pi * (step - 4) / (total - 4))) / 2,
    Constant: lambda step, total: 1.0,
    Step: lambda step, total: 0.1 ** ((step >= total / 2) + (step >= 3 * total / 4)),
    ExponentialDecay: lambda step, total: 0.995**step,
    InverseDecay: lambda step, total: 1 / (1 + 5e-7 * step),
}


@pytest.mark.parametrize("kind", SHAPES, ids=lambda kind: kind.__name__)
def test_every_schedule_warms_up_linearly_and_then_follows_its_own_curve_in_every_group(kind):
    optimizer = two_groups()
    seen = np.array(rates(kind(optimizer, total_steps=20, warmup_steps=4), optimizer, 20))
    expected = [0.2, 0.4, 0.6, 0.8] + [SHAPES[kind](step, 20) for step in range(4, 20)]
    assert seen == pytest.approx(np.outer(expected, [0.1, 1.0]))


def test_a_warm_up_longer_than_the_training_is_refused():
    with pytest.raises(ConfigurationError, match=r"warmup_steps is 30, but the training has 20 steps. Give 0 to 19"):
        Cosine(two_groups(), 20, warmup_steps=30)
