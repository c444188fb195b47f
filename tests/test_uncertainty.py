"""How sure answers are, against definitions in NumPy and torchmetrics' own calibration error."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from densepred.errors import ConfigurationError, DataError
from densepred.inference.augmented import TestTimeAugmentation
from densepred.inference.evidence import Evidence, MeanEvidence
from densepred.inference.uncertainty import Uncertainty, entropy
from densepred.metrics.calibration import CalibrationMetrics
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.regression import Regression
from densepred.tasks.segmentation import Segmentation

TASKS = [
    Segmentation(3),
    Segmentation(2, name="tags", mode="multilabel"),
    Depth(),
    Normals(),
    Regression(planes=2, name="flow"),
]
IMAGE = torch.zeros(1, 3, 4, 5)


class Saying(Evidence):
    def __init__(self, evidence, tasks=TASKS) -> None:
        super().__init__(tasks)
        self.evidence = evidence

    def __call__(self, image):
        return self.evidence


def members(count=4):
    torch.manual_seed(0)
    found = []
    for _ in range(count):
        planes = {t.name: torch.randn(1, t.out_channels, 4, 5, dtype=torch.float64) for t in TASKS}
        found.append({t.name: t.evidence(t.activate(planes[t.name])) for t in TASKS})
    return found


def test_uncertainty_is_what_its_definitions_say():
    said = members()
    found = Uncertainty.of(MeanEvidence([Saying(one) for one in said]), IMAGE)
    assert found.answers == 4
    stacked = {name: np.stack([one[name].numpy() for one in said]) for name in said[0]}
    for name, values in stacked.items():
        np.testing.assert_allclose(found.evidence[name].numpy(), values.mean(0), rtol=1e-6)

    p = stacked["segmentation"]
    whole = -(p.mean(0) * np.log(p.mean(0))).sum(1, keepdims=True)
    own = -(p * np.log(p)).sum(2, keepdims=True).mean(0)
    np.testing.assert_allclose(found.spread["segmentation"]["entropy"].numpy(), whole, rtol=1e-6)
    np.testing.assert_allclose(found.spread["segmentation"]["mutual_information"].numpy(), whole - own, rtol=1e-5)

    q = stacked["tags"]
    h = lambda p: -(p * np.log(p) + (1 - p) * np.log(1 - p))  # noqa: E731
    np.testing.assert_allclose(
        found.spread["tags"]["mutual_information"].numpy(),
        (h(q.mean(0)) - h(q).mean(0)).sum(1, keepdims=True),
        rtol=1e-5,
    )
    np.testing.assert_allclose(found.spread["depth"]["log_std"].numpy(), stacked["depth"].std(0), rtol=1e-6)
    flow = np.sqrt(stacked["flow"].var(0).mean(1, keepdims=True))
    np.testing.assert_allclose(found.spread["flow"]["std"].numpy(), flow, rtol=1e-6)


def test_two_normals_at_an_angle_are_each_half_of_it_from_their_mean():
    half = np.deg2rad(10.0)
    pair = [torch.tensor([s * np.sin(half), 0, -np.cos(half)]).view(1, 3, 1, 1) for s in (-1, 1)]
    evidence = MeanEvidence([Saying({"normals": normal}, [Normals()]) for normal in pair])
    angle = Uncertainty.of(evidence, IMAGE).spread["normals"]["angle"]
    assert angle.item() == pytest.approx(10, abs=1e-3)


def test_one_answer_has_an_entropy_and_no_spread():
    found = Uncertainty.of(Saying(members(1)[0]), IMAGE)
    assert found.answers == 1
    assert {name: sorted(spread) for name, spread in found.spread.items()} == {
        "segmentation": ["entropy"],
        "tags": ["entropy"],
        "depth": [],
        "normals": [],
        "flow": [],
    }


def test_answers_that_agree_share_no_information_and_sure_ones_have_no_entropy():
    sure = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    agreeing = MeanEvidence([Saying({"segmentation": sure}, [Segmentation(3)])] * 3)
    spread = Uncertainty.of(agreeing, IMAGE).spread["segmentation"]
    assert spread["entropy"].item() == 0
    assert spread["mutual_information"].item() == 0
    assert entropy(torch.full((1, 8, 1, 1), 1 / 8), "exclusive").item() == pytest.approx(np.log(8))


def test_the_evidence_beside_it_is_merged_as_asked_for():
    joint = MeanEvidence([Saying(one) for one in members()], merge="max")
    found = Uncertainty.of(joint, IMAGE)
    torch.testing.assert_close(found.evidence["segmentation"], joint(IMAGE)["segmentation"])
    assert not TestTimeAugmentation(joint, flip=True).averages
    assert TestTimeAugmentation(Saying(members()[0]), flip=True).averages


def batch(planes, seed=0, size=(3, 40, 50)):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size[0], planes, *size[1:], generator=generator)
    labels = torch.randint(0, max(planes, 2), size, generator=generator).to(torch.uint8)
    # right more often than by chance
    chosen = torch.rand(size, generator=generator) < 0.5
    labels = torch.where(chosen, logits.argmax(1).to(torch.uint8), labels)
    labels[torch.rand(size, generator=generator) < 0.1] = 255
    return logits, labels


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_torchmetrics_own(bins):
    logits, labels = batch(5)
    ours = CalibrationMetrics(5, bins=bins)
    for part in (slice(0, 1), slice(1, 3)):
        ours.update(logits[part].softmax(1), labels[part])
    for key, norm in (("ece", "l1"), ("mce", "max")):
        reference = MulticlassCalibrationError(5, n_bins=bins, norm=norm, ignore_index=255)
        reference.update(logits.softmax(1), labels.long())
        assert ours.compute()[key].item() == pytest.approx(reference.compute().item(), abs=1e-6)
    known = labels != 255
    right = (logits.argmax(1) == labels)[known].double().mean().item()
    assert ours.compute()["accuracy"].item() == pytest.approx(right)


def test_binary_and_multilabel_confidence_is_that_of_the_answer_given():
    logits, labels = batch(1)
    labels = torch.where(labels == 255, labels, labels % 2)
    probability, known = logits.sigmoid(), labels != 255
    two = torch.cat([1 - probability, probability], 1)
    reference = MulticlassCalibrationError(2, n_bins=15, ignore_index=255)
    reference.update(two, labels.long())
    binary = CalibrationMetrics(2, mode="binary")
    binary.update(probability, labels)
    assert binary.compute()["ece"].item() == pytest.approx(reference.compute().item(), abs=1e-6)
    tags = CalibrationMetrics(2, mode="multilabel")
    tags.update(two, torch.stack([torch.where(known, 1 - labels, labels), labels], 1))
    assert tags.compute()["ece"].item() == pytest.approx(reference.compute().item(), abs=1e-6)
    # torchmetrics' binary metric asks about the probability of label 1 instead; where that is the answer, they agree
    above = known & (probability[:, 0] > 0.5)
    foreign = BinaryCalibrationError(n_bins=15)
    foreign.update(probability[:, 0][above], labels[above].long())
    some = CalibrationMetrics(2, mode="binary")
    some.update(probability, torch.where(above, labels, 255))
    assert some.compute()["ece"].item() == pytest.approx(foreign.compute().item(), abs=1e-6)


def test_processes_and_orders_give_the_very_same_sums():
    whole, parts = CalibrationMetrics(5), [CalibrationMetrics(5) for _ in range(3)]
    batches = [batch(5, seed) for seed in range(3)]
    for logits, labels in batches:
        whole.update(logits.softmax(1), labels)
    for part, (logits, labels) in zip(parts, reversed(batches), strict=True):
        part.update(logits.softmax(1), labels)
    for state in ("pixels", "right", "sureness"):
        assert torch.equal(getattr(whole, state), sum(getattr(part, state) for part in parts))
        assert whole._reductions[state] is not None


def test_the_diagram_of_what_is_calibrated_by_construction_is_the_diagonal():
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(1, 1, 400, 500, generator=generator)
    labels = (torch.rand(1, 400, 500, generator=generator) < p[:, 0]).to(torch.uint8)
    metric = CalibrationMetrics(2, mode="binary", bins=10)
    metric.update(p, labels)
    diagram = metric.diagram()
    assert diagram.counts.tolist()[:5] == [0] * 5
    assert diagram.counts.sum() == 200_000
    # four standard deviations of 40,000 coins
    np.testing.assert_allclose(diagram.accuracy[5:], diagram.confidence[5:], atol=0.01)
    np.testing.assert_allclose(diagram.edges, np.linspace(0, 1, 11))
    assert metric.compute()["ece"] < 0.01


def test_bins_hold_their_upper_end_and_nothing_counted_is_nan():
    metric = CalibrationMetrics(2, bins=4)
    assert all(value.isnan() for value in metric.compute().values())
    edge = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    metric.update(edge, torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert metric.diagram().counts.tolist() == [0, 0, 1, 0]


def test_wrong_sizes_and_strange_labels_are_refused():
    metric = CalibrationMetrics(3)
    with pytest.raises(ConfigurationError, match="at least one bin"):
        CalibrationMetrics(3, bins=0)
    with pytest.raises(ConfigurationError, match=r"expected \(B, 3, H, W\)"):
        metric.update(torch.ones(1, 2, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(ConfigurationError, match="target"):
        metric.update(torch.ones(1, 3, 4, 4), torch.zeros(1, 4, 5))
    metric.update(torch.ones(1, 3, 1, 1), torch.full((1, 1, 1), 3, dtype=torch.uint8))
    with pytest.raises(DataError, match="1 pixels of the targets are labelled outside 3 classes"):
        metric.compute()
