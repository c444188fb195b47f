"""The scores of splits and mergers against scikit-learn, closed forms and what the challenge's program does."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_cdt
from sklearn.metrics import f1_score, v_measure_score
from sklearn.metrics.cluster import pair_confusion_matrix

from densepred.errors import ConfigurationError
from densepred.metrics import NeuriteMetrics
from densepred.metrics.neurites import neurite_scores, segments, thinned
from tests.fakes import write_isbi


def blobs(seed: int, share: float = 0.7, side: int = 40) -> np.ndarray:
    """A mask of a few smooth cells."""
    noise = np.random.default_rng(seed).random((side, side))
    for _ in range(3):
        noise = sum(np.roll(noise, shift, axis) for axis in (0, 1) for shift in (-1, 0, 1))
    return noise < np.quantile(noise, share)


def singled_out(proposed: np.ndarray) -> np.ndarray:
    """Borders as segments of one pixel each."""
    places = np.arange(proposed.size).reshape(proposed.shape) + proposed.max() + 1
    return np.where(proposed > 0, proposed, places)


# ---------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns_of_the_pixels_in_true_cells(seed):
    true, proposed = segments(blobs(seed)), segments(blobs(seed + 10, 0.8))
    rand, info = neurite_scores(proposed, true)
    within = true > 0
    guess, truth = singled_out(proposed)[within], true[within]
    pairs = pair_confusion_matrix(truth, guess) + np.array([[0, 0], [0, len(truth)]])  # ours counts a pixel with itself
    assert rand == pytest.approx(2 * pairs[1, 1] / (2 * pairs[1, 1] + pairs[0, 1] + pairs[1, 0]))
    assert info == pytest.approx(v_measure_score(truth, guess))
    assert 0 < rand < 1


def test_names_of_segments_and_what_lies_outside_of_true_cells_do_not_count():
    true, proposed = segments(blobs(0)), segments(blobs(1))
    other = np.where(proposed > 0, 7 * (proposed.max() + 1 - proposed), 0).astype(np.int32)
    other[true == 0] = 3
    assert neurite_scores(other, true) == pytest.approx(neurite_scores(proposed, true))
    assert neurite_scores(true, true) == pytest.approx((1, 1))


def test_merged_cells_and_cells_that_are_all_border_have_closed_forms():
    true = np.repeat([[1, 1, 1, 0, 2, 2, 2]], 5, axis=0).astype(np.int32)
    pixels = 30
    assert neurite_scores(np.ones_like(true), true) == pytest.approx((2 * 0.5 / 1.5, 0))
    assert neurite_scores(np.zeros_like(true), true) == pytest.approx(
        (2 / pixels / (0.5 + 1 / pixels), 2 * math.log(2) / (math.log(2) + math.log(pixels)))
    )
    assert neurite_scores(np.ones_like(true), np.ones_like(true)) == (1, 1)
    assert np.isnan(neurite_scores(true, np.zeros_like(true))).all()


# ---------------------------------------------------------------------------------------------- segments


def test_pieces_that_touch_at_a_corner_are_two():
    assert segments(np.array([[True, False], [False, True]])).max() == 2
    assert segments(np.array([[True, False], [True, True]])).max() == 1


@pytest.mark.parametrize(("width", "lines"), [(1, (0,)), (3, (1,)), (4, (1, 2)), (7, (3,))])
def test_a_border_between_two_cells_becomes_a_line_in_its_middle(width, lines):
    pieces = np.repeat([[1, 1, *[0] * width, 2, 2]], 6, axis=0).astype(np.int32)
    grown = thinned(pieces)
    for row in grown:
        (line,) = np.flatnonzero(row == 0)
        assert line - 2 in lines
        assert set(row[:line]) == {1}
        assert set(row[line + 1 :]) == {2}
    np.testing.assert_array_equal(pieces[:, :2], 1)


@pytest.mark.parametrize("seed", range(3))
def test_thinned_segments_are_those_nearest_by_and_never_touch(seed):
    pieces = segments(blobs(seed, 0.45))
    grown = thinned(pieces)
    np.testing.assert_array_equal(grown[pieces > 0], pieces[pieces > 0])
    for one, other in ((grown[1:], grown[:-1]), (grown[:, 1:], grown[:, :-1])):
        assert not ((one != other) & (one > 0) & (other > 0)).any()
    away = np.stack([distance_transform_cdt(pieces != n, "taxicab") for n in range(1, pieces.max() + 1)])
    first, second = np.sort(away, axis=0)[:2]
    clear = second > first + 1
    assert clear.mean() > 0.5
    # behind the meeting of two lines a pixel may be reached the longer way round
    assert (grown[clear] == 1 + away.argmin(0)[clear]).mean() > 0.98
    assert (grown == 0).sum() < (pieces == 0).sum() / 2


def test_a_slice_without_cells_is_one_of_borders_and_one_without_borders_stays():
    assert not thinned(np.zeros((4, 5), np.int32)).any()
    assert (thinned(np.ones((4, 5), np.int32)) == 1).all()


# ---------------------------------------------------------------------------------------------- the metric


def test_slices_are_averaged_and_pixels_pooled_in_any_batches():
    target = torch.from_numpy(np.stack([blobs(seed) for seed in range(3)]).astype(np.uint8))
    guess = torch.from_numpy(np.stack([blobs(seed + 10, 0.8) for seed in range(3)]).astype(np.int64))
    whole, parts = NeuriteMetrics(), NeuriteMetrics()
    whole.update(guess, target)
    for one in range(3):
        parts.update(guess[one : one + 1], target[one : one + 1])
    found = {name: float(value) for name, value in whole.compute().items()}
    assert {name: float(value) for name, value in parts.compute().items()} == pytest.approx(found)
    pairs = [(segments(g == 1), segments(t == 1)) for g, t in zip(guess.numpy(), target.numpy(), strict=True)]
    plain = np.mean([neurite_scores(g, t) for g, t in pairs], axis=0)
    thin = np.mean([neurite_scores(thinned(g), t) for g, t in pairs], axis=0)
    assert (found["v_rand"], found["v_info"]) == pytest.approx(tuple(plain))
    assert (found["v_rand_thinned"], found["v_info_thinned"]) == pytest.approx(tuple(thin))
    assert found["pixel_error"] == pytest.approx((guess != target).double().mean().item())
    assert found["cell_f1"] == pytest.approx(f1_score(target.ravel(), guess.ravel()))


def test_thinning_makes_up_for_membranes_that_are_drawn_thick():
    true = np.zeros((30, 31), np.uint8)
    true[:, :15], true[:, 16:] = 1, 1
    thick = true.copy()
    thick[:, 12:19] = 0
    metric = NeuriteMetrics()
    metric.update(torch.from_numpy(thick)[None], torch.from_numpy(true)[None])
    found = metric.compute()
    assert found["v_rand_thinned"] == pytest.approx(1)
    assert found["v_info_thinned"] == pytest.approx(1)
    assert found["v_rand"] < 0.9


def test_missing_pixels_and_slices_without_true_cells_do_not_count():
    true, guess = torch.zeros(2, 6, 9, dtype=torch.uint8), torch.ones(2, 6, 9, dtype=torch.uint8)
    true[0, :, :4], true[0, :, 5:] = 1, 1
    expected = NeuriteMetrics()
    expected.update(guess[:1, :, :4], true[:1, :, :4])
    true[0, :, 4:] = 255
    metric = NeuriteMetrics()
    metric.update(guess, true)
    found = metric.compute()
    for name in ("v_rand", "v_info", "v_rand_thinned", "v_info_thinned"):
        assert found[name] == expected.compute()[name] == 1
    assert found["pixel_error"] == pytest.approx(54 / (24 + 54))


def test_sizes_must_agree():
    with pytest.raises(ConfigurationError, match=r"scored at the target's own size"):
        NeuriteMetrics().update(torch.ones(1, 4, 4), torch.ones(1, 4, 5))


# ---------------------------------------------------------------------------------------------- the benchmark


def test_the_benchmark_cuts_held_out_slices_where_the_training_slices_are_best_cut(tmp_path):
    isbi = runpy.run_path(str(Path(__file__).parents[1] / "experiments" / "benchmarks" / "isbi.py"))
    stack = isbi["Stack"](write_isbi(tmp_path, slices=12))
    learnt, held_out = stack.learnt(0), stack.held_out(0)
    assert (learnt, held_out) == (list(range(6)), list(range(6, 12)))
    cells = torch.where(stack.labels == 1, 0.8, 0.6)
    cells[held_out] -= 0.4  # cut at 0.3 they would be perfect too
    chosen, at, half = isbi["judged"](cells, stack, 0, [0.3, 0.7])
    assert set(at.values()) == {0.7}
    assert chosen["pixel_error"] == pytest.approx((stack.labels[held_out] == 1).double().mean().item())
    assert half == isbi["scored"](cells[held_out], stack.labels[held_out], 0.5)
    assert isbi["scored"](cells[held_out], stack.labels[held_out], 0.3)["v_rand_thinned"] == pytest.approx(1)
