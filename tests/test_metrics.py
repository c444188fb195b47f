"""Metrics against small numpy versions, scikit-learn and the definitions."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import Metric

from densepred.errors import ConfigurationError, DataError
from densepred.metrics import DepthMetrics, NormalsMetrics, RegressionMetrics, SegmentationMetrics
from densepred.metrics.base import scattered_count
from densepred.metrics.normals import angle_degrees

Batches = list[tuple[Tensor, Tensor]]


def label_batches(classes: int = 5, sizes: tuple[int, ...] = (2, 2, 1), absent: tuple[int, ...] = ()) -> Batches:
    """Labels with void; predictions that agree about half of the time; an odd last batch."""
    kept = torch.tensor([i for i in range(classes) if i not in absent])
    batches = []
    for b in sizes:
        target = kept[torch.randint(len(kept), (b, 11, 13))]
        guess = kept[torch.randint(len(kept), (b, 11, 13))]
        prediction = torch.where(torch.rand(b, 11, 13) < 0.5, target, guess)
        void = torch.rand(b, 11, 13) < 0.2
        batches.append((prediction, torch.where(void, 255, target).to(torch.uint8)))
    return batches


def depth_batches(sizes: tuple[int, ...] = (2, 1), height: int = 12, width: int = 17) -> Batches:
    batches = []
    for b in sizes:
        target = 0.5 + 12 * torch.rand(b, 1, height, width)
        target[torch.rand_like(target) < 0.2] = 0
        batches.append((0.2 + 11 * torch.rand(b, 1, height, width), target))
    return batches


def normal_batches(sizes: tuple[int, ...] = (2, 1)) -> Batches:
    batches = []
    for b in sizes:
        target = F.normalize(torch.randn(b, 3, 9, 14), dim=1)
        prediction = target + 0.6 * torch.randn(b, 3, 9, 14)
        target = target * (torch.rand(b, 1, 9, 14) > 0.2)
        batches.append((prediction, target))
    return batches


def score(metric: Metric, batches: Batches) -> dict[str, float]:
    for prediction, target in batches:
        metric.update(prediction, target)
    return {key: float(value) for key, value in metric.compute().items()}


def close(found: dict[str, float], expected: dict[str, float], rtol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=rtol, abs=1e-7, nan_ok=True), key


# ---------------------------------------------------------------------------------------------- segmentation


def flat_known(batches: Batches) -> tuple[np.ndarray, np.ndarray]:
    prediction = np.concatenate([p.numpy().ravel() for p, _ in batches])
    target = np.concatenate([t.numpy().ravel() for _, t in batches])
    return prediction[target != 255], target[target != 255]


def test_labels_agree_with_scikit_learn_over_the_whole_set_with_void_left_out():
    batches = label_batches()
    p, t = flat_known(batches)
    metric = SegmentationMetrics(["a", "b", "c", "d", "e"])
    found = score(metric, batches)
    iou = jaccard_score(t, p, average=None)
    close(
        found,
        {
            "miou": iou.mean(),
            **{f"iou/{name}": value for name, value in zip("abcde", iou, strict=True)},
            "pixel_accuracy": accuracy_score(t, p),
            "mean_accuracy": balanced_accuracy_score(t, p),
            "fw_iou": jaccard_score(t, p, average="weighted"),
        },
    )
    np.testing.assert_array_equal(metric.confusion[0, :5, :5].numpy(), confusion_matrix(t, p))


def test_d5_miou_is_the_mean_over_classes_not_the_micro_average():
    batches = [(torch.tensor([[[0] * 8 + [0, 1]]]), torch.tensor([[[0] * 8 + [1, 1]]]))]
    p, t = flat_known(batches)
    found = score(SegmentationMetrics(2), batches)["miou"]
    assert found == pytest.approx((8 / 9 + 1 / 2) / 2)
    assert abs(found - jaccard_score(t, p, average="micro")) > 0.1


def test_d4_miou_is_of_the_whole_set_not_the_mean_over_steps():
    batches = [
        (torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 1]]])),
        (torch.tensor([[[1, 1, 1, 0]]]), torch.tensor([[[1, 1, 1, 1]]])),
    ]
    whole = score(SegmentationMetrics(2), batches)["miou"]
    steps = np.mean([score(SegmentationMetrics(2), [batch])["miou"] for batch in batches])
    assert whole == pytest.approx((3 / 5 + 3 / 5) / 2)
    assert steps != pytest.approx(whole, abs=0.1)


def test_d3_void_is_left_out_whatever_is_predicted_there():
    target = torch.tensor([[[0, 1, 255, 255]]], dtype=torch.uint8)
    for guess in (0, 1):
        found = score(SegmentationMetrics(2), [(torch.tensor([[[0, 1, guess, guess]]]), target)])
        assert found["miou"] == found["pixel_accuracy"] == 1


@pytest.mark.parametrize(("dtype", "void"), [(torch.uint8, 255), (torch.int32, -1), (torch.int64, 255)])
def test_void_is_255_in_bytes_and_negative_or_255_in_wider_integers(dtype: torch.dtype, void: int):
    target = torch.tensor([[[0, 1, void]]]).to(dtype)
    assert score(SegmentationMetrics(2), [(torch.tensor([[[0, 1, 1]]]), target)])["miou"] == 1


def test_label_255_is_a_class_where_there_are_more_than_255_of_them():
    target = torch.tensor([[[255, 299, -1]]], dtype=torch.int32)
    found = score(SegmentationMetrics(300), [(torch.tensor([[[255, 0, 0]]]), target)])
    assert found["iou/class_255"] == 1
    assert found["pixel_accuracy"] == 0.5


def test_d1_d18_a_class_absent_from_labels_and_predictions_is_skipped_by_default():
    batches = label_batches(absent=(2,))
    p, t = flat_known(batches)
    found = score(SegmentationMetrics(5), batches)
    assert found["miou"] == pytest.approx(jaccard_score(t, p, average="macro", labels=[0, 1, 3, 4]))
    assert found["mean_accuracy"] == pytest.approx(balanced_accuracy_score(t, p))
    assert math.isnan(found["iou/class_2"])


@pytest.mark.parametrize(("absent", "value"), [("zero", 0.0), ("one", 1.0), ("nan", math.nan)])
def test_an_absent_class_counts_what_the_user_asks_for(absent: str, value: float):
    batches = label_batches(absent=(2,))
    p, t = flat_known(batches)
    iou = jaccard_score(t, p, average=None, labels=[0, 1, 3, 4])
    found = score(SegmentationMetrics(5, absent=absent), batches)
    assert found["miou"] == pytest.approx((iou.sum() + value) / 5, nan_ok=True)
    assert found["iou/class_2"] == pytest.approx(value, nan_ok=True)


def test_a_class_that_is_only_predicted_is_not_absent():
    found = score(SegmentationMetrics(3), [(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 1, 1]]]))])
    assert found["iou/class_2"] == 0
    assert found["miou"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["mean_accuracy"] == pytest.approx((1 + 1 / 2) / 2)


def test_only_void_gives_nan_not_a_score():
    found = score(SegmentationMetrics(2), [(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 255).byte())])
    assert all(math.isnan(value) for value in found.values())


def test_binary_labels_count_background_and_foreground():
    batches = label_batches(classes=2)
    p, t = flat_known(batches)
    found = score(SegmentationMetrics(["road"], mode="binary"), batches)
    close(
        {key: found[key] for key in ("iou/background", "iou/road", "miou")},
        {
            "iou/background": jaccard_score(t, p, pos_label=0),
            "iou/road": jaccard_score(t, p, pos_label=1),
            "miou": jaccard_score(t, p, average="macro"),
        },
    )


def test_multilabel_asks_every_class_its_own_question():
    names = ["wet", "road", "snow"]
    prediction, target = torch.rand(3, 3, 6, 7) < 0.5, (torch.rand(3, 3, 6, 7) < 0.4).byte()
    target[torch.rand(3, 3, 6, 7) < 0.2] = 255
    found = score(SegmentationMetrics(names, mode="multilabel"), [(prediction, target)])
    known = target.numpy() != 255
    pairs = [(target.numpy()[:, c][known[:, c]], prediction.numpy()[:, c][known[:, c]]) for c in range(3)]
    iou = np.array([jaccard_score(t, p) for t, p in pairs])
    true = np.array([t.sum() for t, _ in pairs])
    close(
        found,
        {
            "miou": iou.mean(),
            **{f"iou/{name}": value for name, value in zip(names, iou, strict=True)},
            "pixel_accuracy": (prediction.numpy() == target.numpy())[known].mean(),
            "mean_accuracy": np.mean([p[t == 1].mean() for t, p in pairs]),
            "fw_iou": (iou * true).sum() / true.sum(),
        },
    )


@pytest.mark.parametrize(("what", "prediction", "target"), [("targets", 1, 77), ("predictions", 2, 1)])
def test_a_label_outside_the_classes_is_reported_not_scored(what: str, prediction: int, target: int):
    metric = SegmentationMetrics(2)
    metric.update(torch.full((1, 2, 3), prediction), torch.full((1, 2, 3), target))
    with pytest.raises(DataError, match=f"6 pixels of the {what} are labelled outside 0 .. 1"):
        metric.compute()


def test_counts_stay_exact_past_what_float32_can_count():
    metric = SegmentationMetrics(2)
    one = torch.zeros(1, 1, 1, dtype=torch.long)
    metric.update(one, one)
    metric.confusion[0, 0, 0] = 2**24
    metric.update(one, one)
    assert metric.confusion[0, 0, 0] == 2**24 + 1


@pytest.mark.parametrize("bins", [3, 442, 18001])
def test_scattered_counts_are_bincount(bins: int):
    numbers = torch.randint(bins, (5, 333))
    assert torch.equal(scattered_count(numbers, bins), torch.bincount(numbers.flatten(), minlength=bins))


# ----------------------------------------------------------------------------------------------------- depth


def numpy_depth(prediction: np.ndarray, target: np.ndarray, near: float = 1e-3, far: float = 10.0) -> dict[str, float]:
    """The definitions of field.md 1.2 for one set of pixels."""
    keep = (target > near) & (target < far)
    p, g = np.clip(prediction[keep].astype(np.float64), near, far), target[keep].astype(np.float64)
    e = np.log(p) - np.log(g)
    ratio = np.maximum(p / g, g / p)
    return {
        "abs_rel": np.mean(np.abs(g - p) / g),
        "sq_rel": np.mean((g - p) ** 2 / g),
        "rmse": np.sqrt(np.mean((g - p) ** 2)),
        "rmse_log": np.sqrt(np.mean(e**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(g))),
        "silog": 100 * np.sqrt(np.mean(e**2) - np.mean(e) ** 2),
        **{f"delta{k}": np.mean(ratio < 1.25**k) for k in (1, 2, 3)},
    }


def test_depth_is_the_mean_over_images_of_each_image_s_measures():
    batches = depth_batches((2, 2, 1))
    images = [numpy_depth(p[i].numpy(), t[i].numpy()) for p, t in batches for i in range(len(p))]
    close(score(DepthMetrics(), batches), {key: np.mean([image[key] for image in images]) for key in images[0]})


def test_depth_pooled_over_pixels_is_the_measure_of_all_pixels_together():
    batches = depth_batches((2, 2, 1))
    p, t = (np.concatenate([pair[i].numpy().ravel() for pair in batches]) for i in (0, 1))
    close(score(DepthMetrics(average="pixel"), batches), numpy_depth(p, t))


def test_the_two_averages_differ_when_images_differ_in_difficulty():
    target = torch.full((2, 1, 2, 2), 4.0)
    batch = [(target + torch.tensor([0.0, 2.0]).view(2, 1, 1, 1), target)]
    assert score(DepthMetrics(), batch)["rmse"] == pytest.approx(1.0)
    assert score(DepthMetrics(average="pixel"), batch)["rmse"] == pytest.approx(math.sqrt(2))


def test_d15_silog_is_a_hundred_times_the_deviation_of_the_log_error():
    target = torch.tensor([1.0, 2, 4, 8]).view(1, 1, 2, 2)
    error = torch.tensor([0.3, 0.1, -0.1, 0.2])
    found = score(DepthMetrics(), [(target * error.exp().view(1, 1, 2, 2), target)])
    assert found["silog"] == pytest.approx(100 * error.double().numpy().std(), rel=1e-5)


def test_silog_ignores_a_common_scale_and_is_never_nan():
    target = 0.5 + 4 * torch.rand(1, 1, 30, 40)
    found = score(DepthMetrics(), [(2 * target, target)])
    assert found["silog"] == pytest.approx(0, abs=1e-4)
    assert found["rmse_log"] == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("protocol", "top", "bottom", "left", "right"),
    [
        ("nyu_python", 45, 471, 41, 601),
        ("nyu_toolbox", 44, 471, 40, 601),
        ("eigen14", 21, 460, 25, 616),
        ("none", 0, 480, 0, 640),
    ],
)
def test_d25_each_protocol_counts_its_own_rectangle(protocol: str, top: int, bottom: int, left: int, right: int):
    # each pixel's error marks where it lies: outside the rectangle 1 metre, on its inner border 2, within 0
    error = np.ones((480, 640), np.float32)
    error[top:bottom, left:right] = 2
    error[top + 1 : bottom - 1, left + 1 : right - 1] = 0
    border = (bottom - top) * (right - left) - (bottom - top - 2) * (right - left - 2)
    target = torch.full((1, 1, 480, 640), 4.0)
    metric = DepthMetrics(protocol=protocol)
    found = score(metric, [(target + torch.from_numpy(error), target)])
    assert int(metric.pixels) == (bottom - top) * (right - left)
    assert found["abs_rel"] == pytest.approx(2 / 4 * border / int(metric.pixels))


def test_d25_the_python_crop_lacks_one_row_and_one_column_of_the_toolbox_mask():
    matlab = np.zeros((480, 640), bool)
    rows, columns = np.arange(45, 472), np.arange(41, 602)  # 45:471 and 41:601, 1-based and inclusive
    matlab[np.ix_(rows - 1, columns - 1)] = True
    target = torch.full((1, 1, 480, 640), 4.0)
    sizes = {}
    for protocol in ("nyu_python", "nyu_toolbox"):
        metric = DepthMetrics(protocol=protocol)
        metric.update(target, target * torch.from_numpy(matlab))
        sizes[protocol] = int(metric.pixels)
    assert sizes == {"nyu_python": 426 * 560, "nyu_toolbox": int(matlab.sum())}


def test_a_nyu_crop_refuses_pictures_of_another_size_by_name():
    planes = torch.ones(1, 1, 240, 320)
    with pytest.raises(ConfigurationError, match="nyu_python crops NYU pictures of 480 x 640; these are 240 x 320"):
        DepthMetrics(protocol="nyu_python").update(planes, planes)


def test_depth_is_clamped_into_the_valid_range_with_nan_near_and_infinity_far():
    target = torch.full((1, 1, 1, 4), 5.0)
    prediction = torch.tensor([math.nan, math.inf, -math.inf, 20.0]).view(1, 1, 1, 4)
    found = score(DepthMetrics(min_depth=1.0), [(prediction, target)])
    assert found["abs_rel"] == pytest.approx(np.mean([4, 5, 4, 5]) / 5)


def test_without_clamping_the_prediction_counts_as_it_is_and_a_negative_one_is_never_near():
    target = torch.full((1, 1, 1, 2), 5.0)
    found = score(DepthMetrics(clamp=False), [(torch.tensor([20.0, -5.0]).view(1, 1, 1, 2), target)])
    assert found["rmse"] == pytest.approx(math.sqrt((15**2 + 10**2) / 2))
    assert found["delta3"] == 0
    assert math.isnan(found["rmse_log"])


def test_depth_at_the_limits_of_the_range_is_not_valid():
    metric = DepthMetrics(min_depth=1.0, max_depth=10.0)
    metric.update(torch.ones(1, 1, 1, 5), torch.tensor([1.0, 1.5, 9.9, 10.0, math.inf]).view(1, 1, 1, 5))
    assert int(metric.pixels) == 2


def test_an_image_without_valid_depth_is_skipped_and_counted():
    prediction, target = depth_batches((3,))[0]
    expected = score(DepthMetrics(), [(prediction[[0, 2]], target[[0, 2]])])
    target[1] = 0
    metric = DepthMetrics()
    close(score(metric, [(prediction, target)]), expected)
    assert (int(metric.images), int(metric.skipped)) == (2, 1)


@pytest.mark.parametrize("average", ["image", "pixel"])
def test_a_set_without_valid_depth_has_no_score(average: str):
    found = score(DepthMetrics(average=average), [(torch.ones(2, 1, 3, 3), torch.zeros(2, 1, 3, 3))])
    assert all(math.isnan(value) for value in found.values())


def test_depth_of_constant_prediction_on_real_frames_agrees_with_numpy(real_data: Path):
    from PIL import Image

    frames = sorted((real_data / "nyuv2" / "depth").glob("*.png"))[:3]
    depth = np.stack([np.asarray(Image.open(frame), np.float32) / 1000 for frame in frames])[:, None]
    constant = np.full_like(depth, 2.5)
    images = [numpy_depth(p[0, 45:471, 41:601], t[0, 45:471, 41:601]) for p, t in zip(constant, depth, strict=True)]
    found = score(DepthMetrics("nyu_python"), [(torch.from_numpy(constant), torch.from_numpy(depth))])
    close(found, {key: np.mean([image[key] for image in images]) for key in images[0]})


# --------------------------------------------------------------------------------------------------- normals


def numpy_angles(batches: Batches) -> np.ndarray:
    angles = []
    for prediction, target in batches:
        p, t = (np.moveaxis(x.numpy().astype(np.float64), 1, -1).reshape(-1, 3) for x in (prediction, target))
        keep = np.linalg.norm(t, axis=1) > 0
        p, t = p[keep], t[keep]
        cosine = (p * t).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1)
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return np.concatenate(angles)


def test_normals_are_pooled_over_all_pixels_of_all_images():
    batches = normal_batches((2, 2, 1))
    angles = numpy_angles(batches)
    found = score(NormalsMetrics(), batches)
    median = found.pop("median_angle")
    assert median == pytest.approx(np.median(angles), abs=0.00501)
    close(
        found,
        {
            "mean_angle": angles.mean(),
            "rmse_angle": np.sqrt((angles**2).mean()),
            "within_11_25": (angles < 11.25).mean(),
            "within_22_5": (angles < 22.5).mean(),
            "within_30": (angles < 30).mean(),
        },
    )


def tilted(degrees: list[float], dtype: torch.dtype = torch.float64) -> Batches:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    prediction = torch.stack([angle.sin(), torch.zeros_like(angle), -angle.cos()])[None, :, None].to(dtype)
    target = torch.zeros_like(prediction)
    target[:, 2] = -1
    return [(prediction, target)]


def test_d17_rmse_of_normals_is_the_root_of_the_mean_square_not_the_mean():
    found = score(NormalsMetrics(), tilted([10, 50]))
    assert found["rmse_angle"] == pytest.approx(math.sqrt((10**2 + 50**2) / 2))
    assert found["mean_angle"] == pytest.approx(30)


@pytest.mark.parametrize("angles", [[7.0], [3.0, 90.0], [1, 2, 170], [20, 20, 20, 40, 60, 179.999]])
def test_the_median_is_that_of_numpy_to_the_stated_resolution(angles: list[float]):
    assert score(NormalsMetrics(), tilted(angles))["median_angle"] == pytest.approx(np.median(angles), abs=0.00501)


THRESHOLDS = [("within_11_25", 11.25), ("within_22_5", 22.5), ("within_30", 30.0)]


@pytest.mark.parametrize(("key", "threshold"), THRESHOLDS)
def test_a_share_counts_angles_below_its_threshold(key: str, threshold: float):
    assert score(NormalsMetrics(), tilted([threshold - 1e-6, threshold + 1e-6]))[key] == 0.5


@pytest.mark.parametrize(("key", "threshold"), THRESHOLDS[:2])  # no double of radians is exactly 30 degrees
def test_an_angle_of_exactly_the_threshold_is_not_below_it(key: str, threshold: float):
    steps = torch.arange(-20, 21).double() * 2.0**-55
    x, z = torch.meshgrid(
        math.sin(math.radians(threshold)) + steps, -math.cos(math.radians(threshold)) + steps, indexing="ij"
    )
    prediction = torch.stack([x, torch.zeros_like(x), z])[None]
    target = torch.tensor([0.0, 0.0, -1.0]).double().view(1, 3, 1, 1).expand_as(prediction)
    exact = (angle_degrees(prediction, target) == threshold)[:, None]
    assert exact.any()
    assert score(NormalsMetrics(), [(prediction, target * exact)])[key] == 0


@pytest.mark.parametrize("degrees", [0.0, 0.001, 0.01, 179.99, 180.0])
def test_angles_near_0_and_180_degrees_are_exact_where_acos_in_float32_is_not(degrees: float):
    found = score(NormalsMetrics(), tilted([degrees], torch.float32))
    assert found["mean_angle"] == pytest.approx(degrees, abs=1e-5)


def test_the_length_of_a_predicted_normal_does_not_matter():
    batches = normal_batches()
    longer = [(prediction * 7.5, target) for prediction, target in batches]
    close(score(NormalsMetrics(), longer), score(NormalsMetrics(), batches))


def test_a_predicted_zero_vector_counts_as_a_right_angle_not_as_a_hit():
    prediction, target = tilted([0.0, 0.0])[0]
    prediction[..., 1] = 0
    assert score(NormalsMetrics(), [(prediction, target)])["mean_angle"] == pytest.approx(45)


def test_a_prediction_that_is_nan_shows():
    prediction, target = tilted([0.0, 0.0])[0]
    prediction[..., 1] = math.nan
    found = score(NormalsMetrics(), [(prediction, target)])
    assert math.isnan(found["mean_angle"])
    assert found["within_30"] == 0.5


def test_missing_normals_do_not_count_and_nothing_but_missing_has_no_score():
    prediction, target = tilted([10.0, 80.0])[0]
    target[..., 1] = 0
    assert score(NormalsMetrics(), [(prediction, target)])["mean_angle"] == pytest.approx(10)
    empty = score(NormalsMetrics(), [(prediction, torch.zeros_like(target))])
    assert all(math.isnan(value) for value in empty.values())


# ------------------------------------------------------------------------------------------------ regression


def test_regression_errors_are_pooled_over_known_values():
    prediction, target = torch.randn(2, 2, 4, 5), torch.randn(2, 2, 4, 5)
    valid = torch.rand(2, 1, 4, 5) < 0.7
    target[0, 1, 2, 3] = math.nan
    known = valid.expand_as(target).numpy() & np.isfinite(target.numpy())
    error = (prediction.double() - target.double()).numpy()[known]
    expected = {"mae": np.abs(error).mean(), "rmse": np.sqrt((error**2).mean())}
    for mask in (valid, valid[:, 0], valid.expand_as(target)):
        metric = RegressionMetrics(planes=2)
        metric.update(prediction, target, mask)
        close({key: float(value) for key, value in metric.compute().items()}, expected)


def test_a_mask_of_another_size_is_refused():
    planes = torch.zeros(2, 3, 4, 5)
    with pytest.raises(ConfigurationError, match=r"valid has size \(2, 2, 4, 5\)"):
        RegressionMetrics(planes=3).update(planes, planes, torch.ones(2, 2, 4, 5, dtype=torch.bool))


# -------------------------------------------------------------------------------------------------- all four

CASES: dict[str, tuple[Callable[[], Metric], Callable[[tuple[int, ...]], Batches]]] = {
    "segmentation": (lambda: SegmentationMetrics(5), lambda sizes: label_batches(5, sizes)),
    "binary": (lambda: SegmentationMetrics(2, mode="binary"), lambda sizes: label_batches(2, sizes)),
    "multilabel": (
        lambda: SegmentationMetrics(3, mode="multilabel"),
        lambda sizes: [(torch.randint(2, (b, 3, 5, 6)), torch.randint(2, (b, 3, 5, 6)).byte()) for b in sizes],
    ),
    "depth": (DepthMetrics, depth_batches),
    "depth pooled": (lambda: DepthMetrics(average="pixel"), depth_batches),
    "normals": (NormalsMetrics, normal_batches),
    "regression": (
        lambda: RegressionMetrics(2),
        lambda sizes: [(torch.randn(b, 2, 5, 6), torch.randn(b, 2, 5, 6)) for b in sizes],
    ),
}
every_metric = pytest.mark.parametrize(("build", "batches"), CASES.values(), ids=CASES.keys())


@every_metric
def test_how_the_set_is_cut_into_batches_does_not_matter(build, batches):
    pairs = batches((3, 2, 1))
    whole = [(torch.cat([p for p, _ in pairs]), torch.cat([t for _, t in pairs]))]
    close(score(build(), pairs), score(build(), whole))


@every_metric
def test_states_of_two_metrics_merge(build, batches):
    pairs = batches((3, 1))
    first, second = build(), build()
    first.update(*pairs[0])
    second.update(*pairs[1])
    first.merge_state(second)
    close({key: float(value) for key, value in first.compute().items()}, score(build(), pairs))


@every_metric
def test_reset_forgets(build, batches):
    first, second = batches((2, 2))
    metric = build()
    metric.update(*first)
    metric.reset()
    close(score(metric, [second]), score(build(), [second]))


@every_metric
def test_casting_the_network_to_half_precision_leaves_the_sums_exact(build, batches):
    pairs = batches((2, 1))
    network = nn.ModuleDict({"metric": build()}).to(torch.bfloat16).half()
    close(score(network["metric"], pairs), score(build(), pairs))


def test_a_device_without_float64_gets_float32_sums():
    def to_apple(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor

    pairs = depth_batches()
    metric = DepthMetrics()
    metric._apply(to_apple)
    close(score(metric, pairs), score(DepthMetrics(), pairs), rtol=1e-5)
    assert metric.sums.dtype == torch.float32


def test_sums_do_not_lose_small_errors_beside_many_large_ones():
    # 2**25 + 1 cannot be added up in float32
    metric = RegressionMetrics(1)
    for value in (2.0**25, 1.0):
        metric.update(torch.full((1, 1, 1, 1), value), torch.zeros(1, 1, 1, 1))
    assert float(metric.total) == 2**25 + 1


class _NoWaiting(TorchDispatchMode):
    """Refuses every operation that makes the host wait for the device."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_dim", "equal", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith(self.waiting):
            raise AssertionError(f"{func} waits for the device")
        if name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            raise AssertionError(f"{func} with a boolean mask waits for the device")
        return func(*args, **(kwargs or {}))


@every_metric
def test_update_never_waits_for_the_device(build, batches):
    pairs = batches((2, 1))
    metric = build()
    with _NoWaiting():
        for pair in pairs:
            metric.update(*pair)


@every_metric
def test_update_needs_no_value_of_any_tensor(build, batches):
    # tensors of the meta device have no values, so whatever would fetch one raises
    metric = build().to("meta")
    for prediction, target in batches((2, 1)):
        metric.update(prediction.to("meta"), target.to("meta"))


def test_the_guard_against_waiting_sees_it():
    mask = torch.tensor([True, False])
    for wait in (lambda: mask.sum().item(), lambda: mask[mask], lambda: mask.nonzero(), lambda: mask.unique()):
        with pytest.raises(AssertionError, match="waits"), _NoWaiting():
            wait()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_metric
def test_update_never_synchronises_with_a_cuda_device(build, batches):
    pairs = batches((3, 1))
    metric = build().cuda()
    on_device = [(prediction.cuda(), target.cuda()) for prediction, target in pairs]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for pair in on_device:
            metric.update(*pair)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    close({key: float(value) for key, value in metric.compute().items()}, score(build(), pairs))


@every_metric
def test_another_size_than_the_target_s_is_refused_with_both_sizes(build, batches):
    prediction, target = batches((2,))[0]
    with pytest.raises(ConfigurationError, match="scored at the target's own size"):
        build().update(prediction[..., :-1], target)
    with pytest.raises(ConfigurationError, match="expected"):
        build().update(prediction[0], target[0])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SegmentationMetrics(1), "multiclass needs two classes or more; got classes=1"),
        (lambda: SegmentationMetrics(3, mode="binary"), "binary needs two classes; got classes=3"),
        (lambda: SegmentationMetrics(3, mode="multi"), "expected one of multiclass, binary, multilabel"),
        (lambda: SegmentationMetrics(["a", "b", "a"]), "named twice: a"),
        (lambda: SegmentationMetrics(3, absent="keep"), "expected one of skip, zero, one, nan"),
        (lambda: DepthMetrics("eigen"), "expected one of nyu_python, nyu_toolbox, eigen14, none"),
        (lambda: DepthMetrics(average="images"), "expected image or pixel"),
        (lambda: DepthMetrics(min_depth=10.0, max_depth=1.0), "0 < min_depth < max_depth"),
        (lambda: RegressionMetrics(0), "at least one plane"),
    ],
)
def test_options_that_make_no_sense_are_refused(build, words: str):
    with pytest.raises(ConfigurationError, match=words):
        build()


def _score_a_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, (build, batches) in CASES.items():
        torch.manual_seed(7)
        # the shares are uneven: two batches of three for the first process, an odd last one for the second
        pairs = batches((3, 3, 1))
        metric = build()
        for pair in pairs[:2] if rank == 0 else pairs[2:]:
            metric.update(*pair)
        found[name] = {key: float(value) for key, value in metric.compute().items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_uneven_shares_compute_what_one_computes(tmp_path: Path):
    torch.multiprocessing.spawn(_score_a_share, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, (build, batches) in CASES.items():
            torch.manual_seed(7)
            close(found[name], score(build(), batches((3, 3, 1))))
