"""MSDNet against the published counts; its exits, and answers within a budget."""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from densepred.anatomy.exit_costs import exit_costs
from densepred.blocks import ConvNormAct
from densepred.cli import main
from densepred.decoders.anytime import AnytimeDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.msdnet import MSDNetEncoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.inference.anytime import AnytimeEvidence, Budget, within
from densepred.inference.budgeted import calibrated, exit_shares, shares_for, thresholds_for
from densepred.inference.evidence import MeanEvidence, NetworkEvidence
from densepred.inference.options import InferenceOptions
from densepred.inference.predictor import Predictor
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.tasks.depth import Depth
from densepred.tasks.segmentation import Segmentation

CIFAR = partial(
    MSDNetEncoder, growth=6, width=16, factors=(1, 2, 4), bottlenecks=(1, 2, 4), stem="cifar", pruned=True
)  # fmt: skip
IMAGENET = partial(MSDNetEncoder, pruned=True)
SMALL = partial(MSDNetEncoder, blocks=(1, 1, 1), growth=4, width=4, factors=(1, 2, 4), bottlenecks=(1, 2, 4))


def classifier(channels: int, classes: int, width: int) -> nn.Module:
    """The published one, on the coarsest map."""
    convolutions = ConvNormAct(channels, width, stride=2), ConvNormAct(width, width, stride=2)
    return nn.Sequential(*convolutions, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(width, classes))


def classified(encoder: MSDNetEncoder, classes: int, width: int | None, size: int) -> tuple[int, list[float]]:
    """Parameters with a classifier at each exit, and MMAC up to each exit with its and all earlier classifiers."""
    heads, spent = nn.ModuleList(), []
    with FlopCounterMode(display=False) as flops:
        for maps in encoder.eval().exits(torch.zeros(1, 3, size, size)):
            channels = maps[-1].shape[1]
            heads.append(classifier(channels, classes, width or channels).eval())
            heads[-1](maps[-1])
            spent.append(flops.get_total_flops() / 2e6)
    return sum(p.numel() for part in (encoder, heads) for p in part.parameters()), spent


PUBLISHED = {
    "CIFAR-10, 10 exits": (
        partial(CIFAR, blocks=(4, *[2] * 9)), 10, 4_839_544,
        (14.96, 25.24, 37.43, 51.62, 61.69, 73.52, 87.13, 99.39, 109.44, 120.97),
    ),
    "CIFAR-100, 7 exits": (
        partial(CIFAR, blocks=(4, *[2] * 6)), 100, 3_067_960, (14.97, 25.26, 36.78, 45.97, 56.93, 66.53, 75.49),
    ),
    "CIFAR-10, 11 exits": (
        partial(CIFAR, blocks=(4, *[2] * 10)), 10, 5_470_050,
        (14.96, 25.24, 37.43, 51.62, 61.69, 73.52, 87.13, 99.39, 109.44, 120.97, 133.97),
    ),
    "CIFAR-100, growing blocks, 5 exits": (
        partial(CIFAR, blocks=(1, 2, 3, 4, 5)), 100, 2_078_924, (6.79, 14.21, 27.28, 41.37, 58.09),
    ),
    "CIFAR-10, growing blocks, 7 exits": (
        partial(CIFAR, blocks=(1, 2, 3, 4, 5, 6, 7)), 10, 3_885_394,
        (6.78, 14.19, 27.01, 48.01, 75.84, 108.12, 136.48),
    ),
    "ImageNet, step 4": (IMAGENET, 1000, 23_958_440, (337.2, 681.7, 1003.7, 1249.6, 1355.6)),
    "ImageNet, step 6": (partial(IMAGENET, blocks=(6,) * 5), 1000, 56_529_304, (511.3, 1166.1, 1838.4, 2494.6, 2735.1)),
    "ImageNet, step 7": (partial(IMAGENET, blocks=(7,) * 5), 1000, 62_314_472, (612.0, 1430.8, 2276.4, 2959.9, 3246.2)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_trunk_and_classifiers_have_the_parameters_and_operations_of_the_release(name):
    build, classes, parameters, mmac = PUBLISHED[name]
    cifar = "CIFAR" in name
    with torch.device("meta"):
        count, spent = classified(build(), classes, 128 if cifar else None, 32 if cifar else 224)
    assert count == parameters
    assert spent == pytest.approx(list(mmac), abs=0.0051 if cifar else 0.051)


def test_the_finest_scale_is_dropped_after_each_part_of_the_layers_and_the_others_are_halved():
    with torch.device("meta"):
        maps = list(CIFAR(blocks=(1,) * 6).exits(torch.zeros(1, 3, 32, 32)))  # intervals of two layers
    # finest: 16 + 2 x 6, then dropped; second: 32 + 3 x 12 = 68, as 34 at a factor of 1 halved to 17
    assert [m[0].shape[1] for m in maps] == [22, 28, 28, 28, 28, 28]
    assert [m[1].shape[1] for m in maps] == [44, 56, 34, 46, 46, 46]
    # third: 64 + 3 x 24 = 136 to 68, + 2 x 24 = 116, as 29 halved to 14
    assert [m[2].shape[1] for m in maps] == [88, 112, 68, 92, 56, 80]


def test_a_layer_takes_half_of_what_it_adds_from_the_finer_scale():
    layer = SMALL().blocks[0][0].eval()
    maps = [torch.rand(1, 4, 16, 16), torch.rand(1, 8, 8, 8), torch.rand(1, 16, 4, 4)]
    fine_changed = [torch.rand(1, 4, 16, 16), *maps[1:]]
    before, after = layer(maps)[1], layer(fine_changed)[1]
    assert torch.equal(before[:, :8], maps[1])  # what was there stays, in front
    changed = (before != after).flatten(2).any(-1)[0]
    assert changed.tolist() == [False] * 8 + [True] * 4 + [False] * 4
    assert torch.equal(layer(maps)[0][:, 4:], layer([maps[0], maps[1] * 2, maps[2]])[0][:, 4:])  # none from the coarser


def test_what_an_exit_sees_are_the_first_channels_of_the_last_maps():
    encoder = SMALL().eval()
    image = torch.rand(2, 3, 48, 64)
    last = encoder(image)
    for channels, maps in zip(encoder.spec.exits, encoder.exits(image), strict=True):
        assert tuple(m.shape[1] for m in maps) == channels
        assert all(torch.equal(m, whole[:, :width]) for m, whole, width in zip(maps, last, channels, strict=True))
    assert encoder.spec.exits[-1] == encoder.spec.channels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ()}, r"blocks \(\); give at least one"),
        ({"blocks": (2, 0)}, "each of at least one layer"),
        ({"growth": 3, "factors": (1, 1, 2, 2)}, "growth 3 times the factor 1 is odd.*Give an even growth"),
        ({"factors": (1,), "bottlenecks": (1,)}, "at least two factors"),
        ({"bottlenecks": (1, 2)}, "as many bottlenecks"),
        ({"stem": "resnet"}, "stem is 'resnet'. Expected cifar or imagenet"),
    ],
)
def test_a_trunk_that_cannot_be_built_says_what_to_give(options, message):
    with torch.device("meta"), pytest.raises(ConfigurationError, match=message):
        MSDNetEncoder(**options)


def test_a_head_is_the_sum_of_the_scores_of_all_maps_enlarged_bilinearly():
    decoder = AnytimeDecoder(FeatureSpec((3, 5), (4, 8), exits=((2, 3), (3, 5))), out_channels=2).eval()
    fine, coarse = torch.rand(1, 3, 6, 8), torch.rand(1, 5, 3, 4)
    for exit, (a, b) in enumerate(decoder.spec.exits):
        on_fine, on_coarse = decoder.heads[exit].scores
        expected = F.conv2d(fine[:, :a], on_fine.weight, on_fine.bias) + F.interpolate(
            F.conv2d(coarse[:, :b], on_coarse.weight), scale_factor=2, mode="bilinear"
        )
        torch.testing.assert_close(decoder.at_exit([fine, coarse], exit), expected)
    assert torch.equal(decoder([fine, coarse]), decoder.at_exit([fine, coarse], 1))
    # as many numbers as planes for each channel that is read, and a bias each
    assert sum(p.numel() for p in decoder.parameters()) == 2 * (2 + 3 + 1) + 2 * (3 + 5 + 1)


def network(tasks: dict[str, int] | None = None, **options: object) -> DenseNetwork:
    torch.manual_seed(0)
    return DenseNetwork(SMALL(), AnytimeDecoder, tasks or {"segmentation": 3}, **options).eval()


def test_all_exits_answer_in_training_and_the_last_alone_in_evaluation():
    net = network({"segmentation": 3, "depth": 1})
    image = torch.rand(2, 3, 40, 50)
    assert set(net.planes(image)) == {"segmentation", "depth"}
    planes = net.train().planes(image)
    assert set(planes) == {f"{task}{end}" for task in ("segmentation", "depth") for end in ("", "/exit1", "/exit2")}
    assert {value.shape[-2:] for value in planes.values()} == {(12, 16)}


def test_a_shared_decoder_splits_the_planes_of_every_exit():
    net = network({"segmentation": 3, "depth": 1}, share_decoder=True).train()
    shapes = {name: value.shape[1] for name, value in net.planes(torch.rand(2, 3, 40, 50)).items()}
    assert shapes == {f"{task}{end}": n for task, n in (("segmentation", 3), ("depth", 1))
                      for end in ("", "/exit1", "/exit2")}  # fmt: skip


def test_the_loss_is_the_plain_sum_over_exits():
    torch.manual_seed(0)
    module = DensePredictor(SMALL(), AnytimeDecoder, [Segmentation(3)], auxiliary_weight=0.1).train()
    batch = {"image": torch.rand(2, 3, 48, 64), "segmentation": torch.randint(3, (2, 48, 64), dtype=torch.uint8)}
    planes = module.network.planes(batch["image"])
    expected = sum(
        F.cross_entropy(F.interpolate(value, size=(48, 64), mode="bilinear"), batch["segmentation"].long())
        for value in planes.values()
    )
    assert len(planes) == 3
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_the_costs_of_exits_are_those_of_running_them():
    net = network()
    costs = exit_costs(net, (50, 70))
    for k in range(3):
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            for exit, maps in enumerate(net.maps_at_exits(torch.rand(1, 3, 50, 70))):
                if exit == k:
                    net.planes_at_exit(k, maps, (50, 70))
                    break
        assert costs.directly[k] == flops.get_total_flops() // 2
    assert all(p.device.type == "cpu" for p in net.parameters())


class Counting:
    """How often each block and each head ran, and for how many images."""

    def __init__(self, net: DenseNetwork) -> None:
        self.blocks: list[tuple[int, int]] = []
        self.heads: list[tuple[int, int]] = []
        heads = next(iter(net.decoders.values())).heads
        for parts, seen in ((net.encoder.blocks, self.blocks), (heads, self.heads)):
            for k, part in enumerate(parts):
                part.register_forward_hook(lambda _, maps, __, k=k, seen=seen: seen.append((k, len(maps[0][0]))))


def test_a_budget_of_operations_takes_the_last_exit_that_it_pays_for_and_computes_nothing_behind_it():
    net = network()
    image = torch.rand(2, 3, 48, 64)
    costs = exit_costs(net, (48, 64)).directly
    for k in range(3):
        ran = Counting(net)
        evidence = AnytimeEvidence(net, [Segmentation(3)], Budget(macs=costs[k]))
        with torch.no_grad():
            answer = evidence(image)["segmentation"]
            maps = list(net.maps_at_exits(image))[k]
            expected = net.planes_at_exit(k, maps, (48, 64))["segmentation"]
        assert ran.blocks[: k + 1] == [(i, 2) for i in range(k + 1)]
        assert len(ran.blocks) == k + 1 + 3  # three more for what is expected
        assert ran.heads == [(k, 2), (k, 2)]
        enlarged = F.interpolate(expected, size=(48, 64), mode="bilinear").softmax(1)
        torch.testing.assert_close(answer[..., :48, :64], enlarged)
        assert evidence.taken == {k + 1: 2}
        assert evidence.macs == 2 * costs[k]


def test_a_budget_below_the_first_exit_is_refused_with_what_exits_cost():
    net = network()
    first = exit_costs(net, (48, 64)).directly[0]
    with pytest.raises(ConfigurationError, match=f"the first exit costs {first / 1e6:.1f}.*Give more"):
        AnytimeEvidence(net, [Segmentation(3)], Budget(macs=first - 1))(torch.rand(1, 3, 48, 64))


def test_a_budget_of_time_ends_at_the_exit_behind_which_the_next_would_be_late(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("densepred.inference.anytime.perf_counter", lambda: now[0])
    net = network()
    ran = Counting(net)

    def takes_a_second(*_: object) -> None:
        now[0] += 1.0

    for block in net.encoder.blocks:
        block.register_forward_hook(takes_a_second)
    image = torch.rand(1, 3, 48, 64)
    for seconds, blocks in ((0.1, 1), (60.0, 3), (2.5, 2), (1.5, 1), (3.5, 3)):
        ran.blocks.clear()
        evidence = AnytimeEvidence(net, [Segmentation(3)], Budget(seconds=60))
        evidence(image)  # how long the steps take is known from here on
        ran.blocks.clear()
        evidence.budget = Budget(seconds=seconds)
        evidence(image)
        assert len(ran.blocks) == blocks


def test_a_step_that_was_slow_once_is_tried_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("densepred.inference.anytime.perf_counter", lambda: now[0])
    net = network()
    slow = iter([0.1, 2.0, 0.1])

    def takes_long_at_first(*_: object) -> None:
        now[0] += next(slow, 0.1)

    for block in net.encoder.blocks:
        block.register_forward_hook(takes_long_at_first)
    evidence = AnytimeEvidence(net, [Segmentation(3)], Budget(seconds=1.0))
    for _ in range(20):
        left = evidence.taken.copy()
        evidence(torch.rand(1, 3, 48, 64))
    assert evidence.taken - left == {3: 1}


def sure_of(values: list[list[float]]) -> AnytimeEvidence:
    """A network whose exits are as sure of each image as told."""
    evidence = AnytimeEvidence(network(), [Segmentation(3)], thresholds=(0.5, 0.8))
    left = list(range(len(values)))
    calls = iter(range(2))

    def sureness(planes: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        exit = next(calls)
        sure = torch.tensor([values[image][exit] for image in left])
        left[:] = [image for image, value in zip(left, sure, strict=True) if value < evidence.thresholds[exit]]
        return sure

    evidence.sureness = sureness
    return evidence


def test_each_image_leaves_at_the_first_exit_that_is_sure_and_the_rest_go_on_as_a_smaller_batch():
    evidence = sure_of([[0.4, 0.7], [0.6, 0.0], [0.3, 0.9], [0.2, 0.1]])
    ran = Counting(evidence.network)
    images = torch.rand(4, 3, 48, 64)
    with torch.no_grad():
        answers = evidence(images)["segmentation"]
        assert ran.blocks == [(0, 4), (1, 3), (2, 2)]
        assert ran.heads == [(0, 4), (1, 3), (2, 2)]
        for image, exit in enumerate((2, 0, 1, 2)):
            maps = list(evidence.network.maps_at_exits(images[image : image + 1]))[exit]
            planes = evidence.network.planes_at_exit(exit, maps, (48, 64))["segmentation"]
            expected = F.interpolate(planes, size=(48, 64), mode="bilinear").softmax(1)[0]
            torch.testing.assert_close(answers[image], expected, rtol=1e-4, atol=1e-5)
    assert evidence.taken == {1: 1, 2: 1, 3: 2}
    costs = evidence.costs((48, 64)).on_the_way
    assert evidence.macs == costs[0] + costs[1] + 2 * costs[2]


def test_how_sure_an_exit_is_leaves_out_what_was_padded():
    evidence = AnytimeEvidence(network(), [Segmentation(3)], thresholds=(0.5,))
    planes = torch.zeros(1, 3, 12, 16)  # of 40 x 50 pixels, padded to 48 x 64 at stride 4
    planes[..., :10, :13] = torch.tensor([2.0, 0.0, 0.0]).log1p().view(1, 3, 1, 1)
    assert evidence.sureness({"segmentation": planes}, (40, 50)).item() == pytest.approx(3 / 5)


def test_a_network_without_exits_has_no_budget_and_says_what_has():
    nets = [
        DenseNetwork(SMALL(), UNetDecoder, {"segmentation": 3}),
        DenseNetwork(SMALL(pruned=True), AnytimeDecoder, {"segmentation": 3}),
    ]
    for net in nets:
        with pytest.raises(ConfigurationError, match=r"MSDNetEncoder with .*answers at its end alone\. Train Any"):
            AnytimeEvidence(net, [Segmentation(3)], Budget(macs=10**9))
        assert exit_costs(net, (48, 64)).encoder[-1] > 0


def test_confidences_that_cannot_be_used_are_refused():
    with pytest.raises(ConfigurationError, match=r"one for each exit but the last \(2 here\)"):
        AnytimeEvidence(network(), [Segmentation(3)], thresholds=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigurationError, match=r"wants probabilities, but the tasks are depth\. Give"):
        AnytimeEvidence(network({"depth": 1}), [Depth()], thresholds=(0.5,))


@pytest.mark.parametrize("text", ["", "fast", "0ms", "12", "3 gflops", "-1s", "gmac"])
def test_a_budget_that_is_no_amount_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"expected operations, such as 0\.5gmac or 300mmac, or a time"):
        Budget.parse(text)


def test_shares_go_by_powers_and_meet_the_budget():
    assert exit_shares(4, 1.0) == (0.25,) * 4
    a, b, c = exit_shares(3, 0.2)
    assert (b / a, c / b) == pytest.approx((0.2, 0.2))
    costs = (10.0, 14.0, 30.0)
    for budget in (10.0, 11.0, 18.0, 25.0, 30.0):
        shares = shares_for(budget, costs)
        assert sum(shares) == pytest.approx(1)
        assert sum(q * c for q, c in zip(shares, costs, strict=True)) == pytest.approx(budget, rel=1e-6)
    with pytest.raises(ConfigurationError, match="Give a number between"):
        shares_for(31.0, costs)


def test_thresholds_let_the_planned_share_leave_at_each_exit():
    torch.manual_seed(0)
    sure = torch.rand(1000, 3)
    shares = (0.4, 0.3, 0.2, 0.1)
    thresholds = thresholds_for(sure, shares)
    left = torch.ones(1000, dtype=torch.bool)
    for column, threshold, share in zip(sure.unbind(1), thresholds, shares, strict=False):
        leaves = left & (column >= threshold)
        assert int(leaves.sum()) == round(1000 * share)
        left &= ~leaves
    assert thresholds_for(sure, (0.0, 0.5, 0.0, 0.5))[0] == math.inf


def test_calibrated_thresholds_cost_the_budget_on_the_images_that_they_come_from():
    net, task = network(), Segmentation(3)
    images = [torch.rand(1, 3, 48, 64) * scale for scale in torch.linspace(0.05, 1, 40)]
    costs = exit_costs(net, (48, 64)).on_the_way
    budget = 0.6 * costs[0] + 0.4 * costs[-1]
    noting = InferenceOptions(confidence=(math.inf,)).applied(NetworkEvidence(net, [task]))
    thresholds = calibrated(noting, images, budget)
    evidence = AnytimeEvidence(net, [task], thresholds=thresholds)
    with torch.inference_mode():
        for image in images:
            evidence(image)
    # shares of 40 images are rounded down
    assert evidence.macs / 40 == pytest.approx(budget, rel=0.05)
    assert len(evidence.taken) == 3


def test_every_network_of_an_ensemble_has_the_budget():
    task = Segmentation(3)
    mean = MeanEvidence([NetworkEvidence(network(), [task]) for _ in range(2)])
    budget = Budget(macs=exit_costs(network(), (48, 64)).directly[0])
    bounded = within(mean, budget, ())
    with torch.no_grad():
        bounded(torch.rand(1, 3, 48, 64))
    assert [member.taken for member in bounded.members] == [{1: 1}, {1: 1}]


def test_a_predictor_within_a_budget_takes_pictures_of_any_size():
    predictor = Predictor(
        InferenceOptions(budget="0.02gmac", confidence=(0.4,), flip=True).applied(
            NetworkEvidence(network(), [Segmentation(3)])
        )
    )
    assert predictor(np.zeros((61, 83, 3), np.uint8))["segmentation"].shape == (61, 83)


def test_the_dense_network_has_the_parameters_and_operations_that_the_table_tells():
    with torch.device("meta"):
        net = DenseNetwork(MSDNetEncoder(), AnytimeDecoder, {"segmentation": 11})
    assert sum(p.numel() for p in net.parameters()) == 9_649_751
    gmac = [cost / 1e9 for cost in exit_costs(net, (360, 480)).directly]
    assert gmac == pytest.approx([1.16, 2.42, 4.12, 6.27, 8.86], abs=0.0051)
    readme = (Path(__file__).parents[1] / "experiments" / "README.md").read_text()
    assert "9,649,751 parameters, and 1.16, 2.42, 4.12, 6.27 and 8.86 GMAC" in readme


def test_predict_keeps_to_a_budget_and_calibrates_confidences_for_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = DensePredictor(SMALL(), AnytimeDecoder, [Segmentation(3)])
    trainer = pl.Trainer(max_steps=0, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("net.ckpt")
    Path("photos").mkdir()
    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 32 * (k + 1), (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{k}.png")
    costs = exit_costs(network(), (48, 64))
    command = ["predict", "--ckpt_path", "net.ckpt", "--input", "photos", "--sheet", "0", "--device", "cpu"]
    assert main([*command, "--output", "first", "--budget", f"{costs.directly[0]}mac"]) == 0
    assert f"Answers by exit: 1: 8. {costs.directly[0] / 1e6:.1f} MMAC each" in capsys.readouterr().out
    budget = (costs.on_the_way[0] + costs.on_the_way[2]) // 2
    assert main([*command, "--output", "mean", "--budget", f"{budget}mac", "--calibrate", "photos"]) == 0
    told = capsys.readouterr().out
    assert "Calibrated on 8 pictures: --confidence" in told
    spent = float(re.search(r"([\d.]+) MMAC each", told)[1])
    assert spent == pytest.approx(budget / 1e6, rel=0.15)  # eight pictures cannot be shared out finely
    assert main([*command, "--output", "late", "--calibrate", "photos"]) == 1
    assert "finds the --confidence for a --budget of operations" in capsys.readouterr().err
