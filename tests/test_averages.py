"""Averages over sizes, mirror images and dropout: what follows the image's geometry stays, the rest is a mean."""

import numpy as np
import pytest
import torch
from torch import nn

from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference.augmented import TestTimeAugmentation
from densepred.inference.dropout import MonteCarloDropout
from densepred.inference.evidence import Evidence, MeanEvidence, NetworkEvidence
from densepred.inference.options import InferenceOptions
from densepred.inference.rescaled import Rescaled
from densepred.network import DenseNetwork
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation

TASKS = [Segmentation(3), Depth(), Normals()]
FOCAL = 40.0


class Wall(Evidence):
    """Says what an ideal network would of a picture of a slanted wall whose colours are its position.

    The image's first channel goes from 0 at the left to 1 at the right, its second from 0 at the top to 1 at the
    bottom; a mirror image, or another size, is told by the colours alone.
    """

    def __init__(self) -> None:
        super().__init__(TASKS)
        self.asked = []

    def __call__(self, image):
        self.asked.append(tuple(image.shape[-2:]))
        image = image.float()
        across, down = image[:, :1], image[:, 1:2]
        mirrored = bool(across[0, 0, 0, 0] > across[0, 0, 0, -1])
        # at twice the size the same wall looks twice as near
        metres = (1 + across + 0.5 * down) * 32 / image.shape[-2]
        x = torch.full_like(across, -0.6 if mirrored else 0.6)
        return {
            "segmentation": torch.cat([across, 1 - across, down], 1) / (1 + down),
            "depth": metres.log(),
            "normals": torch.cat([x, 0 * x, 0 * x - 0.8], 1),
        }


def ramps(height=32, width=48):
    rows, columns = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([columns, rows, 0 * rows])[None]


def inner(planes, margin=4):
    return planes[..., margin:-margin, margin:-margin]


@pytest.mark.parametrize(
    "options",
    [
        {"flip": True},
        {"scales": (0.5, 1.0, 1.5)},
        {"scales": (0.75, 2.0), "flip": True},
        {"scales": (), "short_sides": (24, 40), "flip": True},
    ],
    ids=str,
)
def test_what_follows_the_geometry_of_the_image_is_the_same_from_all_sizes_and_sides(options):
    wall, image = Wall(), ramps()
    expected = Wall()(image)
    found = TestTimeAugmentation(wall, **options)(image)
    for name, value in found.items():
        # the border of a resized image is not what an ideal camera would see there
        torch.testing.assert_close(inner(value), inner(expected[name]), atol=4e-3, rtol=0)
    views = len(options.get("scales", (1.0,))) + len(options.get("short_sides", ()))
    assert len(wall.asked) == views * (2 if options.get("flip") else 1)


class Noisy(Evidence):
    """Says something else each time it is asked."""

    def __init__(self, tasks=TASKS) -> None:
        super().__init__(tasks)
        self.said = []

    def __call__(self, image):
        planes = {t.name: torch.randn(1, t.out_channels, *image.shape[-2:], dtype=torch.float64) for t in self.tasks}
        self.said.append({task.name: task.evidence(task.activate(planes[task.name])) for task in self.tasks})
        return self.said[-1]


@pytest.mark.parametrize("merge", ["mean", "logit", "max"])
def test_answers_are_flipped_back_and_merged_by_their_definitions(merge):
    noisy = Noisy()
    found = TestTimeAugmentation(noisy, flip=True, merge=merge)(ramps(4, 6))
    straight, mirror = ({name: value.numpy() for name, value in said.items()} for said in noisy.said)
    mirror = {name: value[..., ::-1].copy() for name, value in mirror.items()}
    mirror["normals"][:, 0] *= -1
    p, q = straight["segmentation"], mirror["segmentation"]
    joint = {"mean": (p + q) / 2, "logit": np.sqrt(p * q), "max": np.maximum(p, q)}[merge]
    np.testing.assert_allclose(found["segmentation"].numpy(), joint / joint.sum(1, keepdims=True), rtol=1e-6)
    for name in ("depth", "normals"):
        np.testing.assert_allclose(found[name].numpy(), (straight[name] + mirror[name]) / 2, rtol=1e-6)


def test_probabilities_remain_some_and_normals_keep_their_length_when_they_are_resized():
    found = TestTimeAugmentation(Noisy(), scales=(0.6,))(ramps(20, 31))
    torch.testing.assert_close(found["segmentation"].sum(1), torch.ones(1, 20, 31, dtype=torch.float64))
    assert found["segmentation"].min() >= 0
    # random directions cancel out between pixels; their interpolated length is that of each
    torch.testing.assert_close(found["normals"].norm(dim=1), torch.ones(1, 20, 31, dtype=torch.float64))


def test_sizes_are_rounded_and_equal_ones_asked_about_once():
    wall = Wall()
    TestTimeAugmentation(wall, scales=(0.5, 1.0), short_sides=(375, 100))(ramps(375, 500))
    assert wall.asked == [(188, 250), (375, 500), (100, 133)]


def test_a_rescaled_image_is_asked_about_at_its_shorter_side_and_depth_believed_as_it_stands():
    wall = Wall()
    found = Rescaled(wall, 16)(ramps(32, 48))
    assert wall.asked == [(16, 24)]
    assert found["segmentation"].shape == (1, 3, 32, 48)
    expected = (1 + 0.5 + 0.25) * 32 / 16  # metres in the middle, said of an image of 16 rows
    middle = found["depth"][0, 0, 15:17, 23:25].mean().exp().item()
    assert middle == pytest.approx(expected, rel=1e-3)


def test_integer_images_are_resized_as_floating_point_ones():
    wall, image = Wall(), (ramps() * 255).round()
    whole = Rescaled(wall, 20)(image.to(torch.uint8))
    parts = Rescaled(wall, 20)(image / 255)
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name])


class Coins(nn.Module):
    """Planes of which dropout leaves out half, then a norm that would take statistics in training mode."""

    def __init__(self, dropout=0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm2d(1, affine=False)

    def padded_size(self, height, width):
        return height, width

    def planes(self, image):
        return {"depth": self.dropout(self.norm(torch.ones_like(image[:, :1], dtype=torch.float32)))}


def coins(dropout=0.5):
    return NetworkEvidence(Coins(dropout).eval(), [Depth(log=True, typical=1.0)])


def test_samples_of_dropout_have_its_statistics_and_norms_keep_theirs():
    evidence = coins()
    sampled = MonteCarloDropout(evidence, 40)
    image = torch.zeros(1, 1, 50, 50)
    # left out or doubled, with equal odds: mean 1, variance 1 (log metres; the norm divides by sqrt(1 + 1e-5))
    answers = torch.stack([answer["depth"] for answer in sampled.answers(image)])
    assert sorted(answers.unique().tolist()) == pytest.approx([0, 2], abs=1e-4)
    assert answers.mean().item() == pytest.approx(1, abs=4 / 100_000**0.5)
    torch.testing.assert_close(sampled(image)["depth"], answers.mean(0))
    assert sampled(image)["depth"].var().item() == pytest.approx(1 / 40, rel=0.1)
    norm = evidence.network.norm
    assert norm.running_mean.item() == 0
    assert norm.num_batches_tracked.item() == 0
    assert not any(module.training for module in evidence.network.modules())


def test_samples_are_the_same_every_time_and_leave_other_random_numbers_alone():
    image = torch.zeros(1, 1, 20, 20)
    sampled = MonteCarloDropout(coins(), 3)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = sampled(image)["depth"]
    assert torch.rand(1) == expected
    assert torch.equal(first, sampled(image)["depth"])
    assert not torch.equal(first, MonteCarloDropout(coins(), 3, seed=1)(image)["depth"])
    free = MonteCarloDropout(coins(), 3, seed=None)
    assert not torch.equal(free(image)["depth"], free(image)["depth"])


def test_layers_return_to_evaluation_when_a_sample_fails():
    evidence = coins()
    sampled = MonteCarloDropout(evidence, 3)
    modes = []

    def failing(image):
        modes.append((evidence.network.dropout.training, evidence.network.norm.training))
        raise RuntimeError("no memory left")

    evidence.network.planes = failing
    with pytest.raises(RuntimeError, match="no memory left"):
        sampled(torch.zeros(1, 1, 4, 4))
    assert modes == [(True, False)]
    assert not evidence.network.dropout.training


def test_networks_without_dropout_are_refused_however_deep_they_lie():
    for bare in (coins(0.0), MeanEvidence([coins(0.0)]), TestTimeAugmentation(coins(0.0), flip=True)):
        with pytest.raises(ConfigurationError, match="has no dropout"):
            MonteCarloDropout(bare, 3)
    deep = MonteCarloDropout(Rescaled(MeanEvidence([coins(), coins(0.0), coins()]), 8), 2)
    assert len(deep.layers) == 2


def test_every_answer_of_members_samples_and_views_can_be_told_apart():
    members = MeanEvidence([coins(), coins()])
    options = InferenceOptions(scales=(1.0, 2.0), flip=True, mc_dropout=3, short_side=16)
    evidence = options.applied(members)
    image = torch.zeros(1, 1, 32, 48)
    answers = [answer["depth"] for answer in evidence.answers(image)]
    assert [answer.shape for answer in answers] == [(1, 1, 32, 48)] * (2 * 2 * 3 * 2)
    torch.testing.assert_close(torch.stack(answers).mean(0), evidence(image)["depth"])


def test_options_that_ask_for_nothing_leave_the_evidence_as_it_is():
    wall = Wall()
    assert InferenceOptions().applied(wall) is wall
    assert isinstance(InferenceOptions(flip=True).applied(wall), TestTimeAugmentation)
    assert isinstance(InferenceOptions(scales=(), short_sides=(9,)).applied(wall), TestTimeAugmentation)
    with pytest.raises(ConfigurationError, match="mc_dropout is -1"):
        InferenceOptions(mc_dropout=-1).applied(wall)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TestTimeAugmentation(Wall(), scales=()), "at least one size"),
        (lambda: TestTimeAugmentation(Wall(), scales=(0.0,)), "above 0"),
        (lambda: TestTimeAugmentation(Wall(), merge="median"), "expected mean, logit or max"),
        (lambda: Rescaled(Wall(), 0), "short_side is 0"),
        (lambda: MonteCarloDropout(coins(), 0), "at least one sample"),
    ],
)
def test_options_out_of_range_are_refused(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_a_size_too_small_for_the_network_is_named():
    network = DenseNetwork(ResNetEncoder("resnet18"), UNetDecoder, {"depth": 1}).eval()
    evidence = TestTimeAugmentation(NetworkEvidence(network, [Depth()]), scales=(0.5,))
    with pytest.raises(ConfigurationError, match="at 20 x 30: The image is 20 x 30"):
        evidence(torch.zeros(1, 3, 40, 60))
