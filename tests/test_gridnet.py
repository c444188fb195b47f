"""GridNet: published numbers, the release's forward pass, total dropout, and its test by sums of logits."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from densepred.decoders.gridnet import GridNetDecoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.gridnet import GridNetEncoder, TotalDropout
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.inference.augmented import TestTimeAugmentation
from densepred.inference.dropout import MonteCarloDropout
from densepred.inference.evidence import NetworkEvidence
from densepred.network import DenseNetwork
from densepred.tasks.segmentation import Segmentation
from tests.test_tiramisu import random_statistics


def published(**options) -> DenseNetwork:
    return DenseNetwork(GridNetEncoder(**options), GridNetDecoder, {"labels": 19})


def small(**options) -> GridNetEncoder:
    return GridNetEncoder(**{"widths": (3, 4, 5), **options})


# ---------------------------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(
    ("widths", "count"),
    [
        ((16, 32, 64, 128, 256), 13_181_097),
        ((16, 32, 64, 126, 256), 13_073_253),  # as the release's training script has it
        ((8, 16, 32, 64, 128, 256), 13_199_721),
    ],
)
def test_it_has_the_published_number_of_parameters(widths, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in published(widths=widths).parameters()) == count


def test_it_has_102_convolutions_and_costs_33_billion_multiplications():
    with torch.device("meta"):
        net = published().eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 400, 400))
    assert sum(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in net.modules()) == 102
    assert round(counter.get_total_flops() / 2e9, 1) == 33.1


def test_every_column_holds_five_rows_of_the_published_sizes():
    seen = []
    with torch.device("meta"):
        encoder = GridNetEncoder().eval()
        for column in (*encoder.downs, *encoder.ups):
            column.register_forward_hook(lambda part, inputs, rows: seen.append([tuple(r.shape[1:]) for r in rows]))
        encoder(torch.empty(1, 3, 400, 400))
    assert seen == [[(16, 400, 400), (32, 200, 200), (64, 100, 100), (128, 50, 50), (256, 25, 25)]] * 6


def test_the_last_two_columns_are_transposed_convolutions_throughout():
    encoder = GridNetEncoder(widths=(2, 2, 2))
    kinds = [{type(m) for m in column.across.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
             for column in (*encoder.downs, *encoder.ups)]  # fmt: skip
    assert kinds == [set(), {nn.Conv2d}, {nn.Conv2d}, {nn.Conv2d}, {nn.ConvTranspose2d}, {nn.ConvTranspose2d}]


def test_weights_and_biases_are_uniform_after_torch7():
    for layer in published(widths=(8, 16, 16)).modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            bound = 1 / math.sqrt(9 * layer.in_channels)
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert 0 < layer.bias.abs().max() <= bound


# ---------------------------------------------------------------------------------------------- the release


def release(net: DenseNetwork, image: torch.Tensor) -> torch.Tensor:
    """The published forward pass, written out node by node with the network's weights."""
    encoder, score = net.encoder, net.decoders["labels"].score

    def norm(layer, values):
        scale = layer.weight / (layer.running_var + 1e-5).sqrt()
        return (values - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]

    def conv(layer, values):
        return F.conv2d(values, layer.weight, layer.bias, layer.stride, 1)

    def deconv(layer, values, enlarge=0):
        return F.conv_transpose2d(values, layer.weight, layer.bias, 1 + enlarge, 1, enlarge)

    def branch(part, values, first, second):
        middle = first(part[2], norm(part[0], values).relu())
        return second(part[5], norm(part[3], middle).relu())

    def across(column, s, values):
        kind = deconv if column in list(encoder.ups)[1:] else conv
        return branch(column.across[s], values, kind, kind)

    values = norm(encoder.stem[0], image)
    for i in (1, 4):
        values = norm(encoder.stem[i + 1], conv(encoder.stem[i], values)).relu()
    grid, count = {(0, 0): values}, len(encoder.widths)
    for c, column in enumerate(encoder.downs):
        for s in range(count):
            node = 0 if c == 0 else grid[c - 1, s] + across(column, s, grid[c - 1, s])
            if s:
                node = node + branch(column.verticals[s - 1], grid[c, s - 1], conv, conv)
            grid[c, s] = grid.get((c, s), node)
    for c, column in enumerate(encoder.ups, start=len(encoder.downs)):
        for s in reversed(range(count)):
            node = grid[c - 1, s] + across(column, s, grid[c - 1, s])
            if s < count - 1:
                node = node + branch(column.verticals[s], grid[c, s + 1], partial(deconv, enlarge=1), deconv)
            grid[c, s] = node
    middle = norm(score[1], deconv(score[0], node)).relu()
    return norm(score[4], deconv(score[3], middle))


@torch.no_grad()
@pytest.mark.parametrize("columns", [1, 3])
def test_planes_are_those_of_the_release_written_out(columns):
    net = DenseNetwork(small(columns=columns), GridNetDecoder, {"labels": 5}).eval()
    random_statistics(net)
    image = torch.rand(2, 3, 36, 40)
    torch.testing.assert_close(net(image)["labels"], release(net, image), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_odd_sizes_go_in_directly_too():
    assert small().eval()(torch.rand(1, 3, 37, 51))[0].shape == (1, 3, 37, 51)


@pytest.mark.parametrize("options", [{"widths": ()}, {"widths": (4, 0)}, {"columns": 0}])
def test_an_empty_grid_is_refused(options):
    with pytest.raises(ConfigurationError, match="expected a row and a column at least"):
        GridNetEncoder(**options)


# ---------------------------------------------------------------------------------------------- total dropout


def test_total_dropout_keeps_or_zeroes_the_whole_batch_and_never_rescales():
    drop, values = TotalDropout(0.3), torch.rand(4, 2, 3, 3) + 1
    torch.manual_seed(0)
    kept = [drop(values) for _ in range(1000)]
    assert all(torch.equal(one, values) or not one.any() for one in kept)
    # 1000 draws of a coin: four deviations
    assert sum(bool(one.any()) for one in kept) / 1000 == pytest.approx(0.7, abs=0.06)
    assert torch.equal(drop.eval()(values), values)


def test_every_residual_branch_has_a_draw_of_its_own():
    with torch.device("meta"):
        drops = [module for module in GridNetEncoder().modules() if isinstance(module, TotalDropout)]
    assert [module.p for module in drops] == [0.1] * (5 * 5)


def test_with_every_residual_branch_dropped_the_verticals_still_connect_all_rows_and_learn_alone():
    net = DenseNetwork(small(dropout=1.0), PointwiseDecoder, {"labels": 2}).train()
    seen = []
    for column in (*net.encoder.downs, *net.encoder.ups):
        column.register_forward_hook(lambda part, inputs, rows: seen.extend(rows))
    planes = net(torch.rand(2, 3, 36, 40))["labels"]
    for row in seen:
        row.retain_grad()
    (planes * torch.rand_like(planes)).sum().backward()
    # the last column's coarse rows lead up in that column; each of them reaches the planes
    assert all(row.grad is not None and row.grad.any() for row in seen)
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all()
        dead = ".across." in name
        # a bias before a batch norm changes nothing either
        assert dead is not bool(parameter.grad.any()) or name.endswith("bias")


@torch.no_grad()
def test_a_pixel_reaches_far_only_through_the_verticals():
    """With the residual branches dropped, the finest row alone has the stem's 5 pixels and the planes' 1."""
    encoder = small(dropout=1.0, widths=(3, 4, 5, 6)).eval()
    for part in (*encoder.downs[1:], *encoder.ups):
        for branch in part.across:
            branch[-1].train()
    image = torch.rand(1, 3, 64, 64)
    other = image.clone()
    other[0, :, 32, 32] = 1 - other[0, :, 32, 32]
    changed = (encoder(image)[0] != encoder(other)[0]).any(1)[0].nonzero()
    assert changed.max() - changed.min() > 16


def test_monte_carlo_dropout_samples_grids():
    task = Segmentation(3, name="labels")
    net = DenseNetwork(small(dropout=0.5), GridNetDecoder, {"labels": 3}).eval()
    evidence = MonteCarloDropout(NetworkEvidence(net, [task]), samples=2)
    assert len(evidence.layers) == 5 * 3
    with torch.no_grad():
        first, second = evidence.answers(torch.rand(1, 3, 40, 40))
    assert not torch.equal(first["labels"], second["labels"])


# ---------------------------------------------------------------------------------------------- sums of logits


@torch.no_grad()
def test_flips_merged_by_logit_have_the_argmax_of_the_sum_of_logits():
    net, task = sharp(), Segmentation(4, name="labels")
    image = torch.rand(1, 3, 48, 56)
    logits = net(image)["labels"] + net(image.flip(-1))["labels"].flip(-1)
    merged = TestTimeAugmentation(NetworkEvidence(net, [task]), flip=True, merge="logit")(image)["labels"]
    torch.testing.assert_close(merged, (logits / 2).softmax(1), rtol=1e-4, atol=1e-5)
    assert torch.equal(merged.argmax(1), logits.argmax(1))


@torch.no_grad()
def test_the_published_sizes_merged_by_logit_label_nearly_all_pixels_as_the_sum_of_enlarged_logits_does():
    """The release enlarges a shrunken view's logits, here its probabilities are enlarged: labels differ at borders."""
    net, task = sharp(), Segmentation(4, name="labels")
    image = F.interpolate(torch.rand(1, 3, 12, 15), scale_factor=8, mode="bilinear")
    scales = [1 / s for s in (1, 1.25, 1.5, 1.75, 2, 2.25, 2.5)]
    total = torch.zeros(1, 4, 96, 120)
    for scale in scales:
        size = (round(96 * scale), round(120 * scale))
        view = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        logits = net(view)["labels"] + net(view.flip(-1))["labels"].flip(-1)
        total += F.interpolate(logits, size=(96, 120), mode="bilinear")
    merged = TestTimeAugmentation(NetworkEvidence(net, [task]), scales, flip=True, merge="logit")(image)["labels"]
    assert (merged.argmax(1) == total.argmax(1)).float().mean() > 0.97


def sharp() -> DenseNetwork:
    """A network that is as sure as a trained one, and not of one class alone."""
    torch.manual_seed(0)
    net = DenseNetwork(small(), GridNetDecoder, {"labels": 4}).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    net(torch.rand(4, 3, 48, 48))  # running statistics
    nn.init.constant_(net.decoders["labels"].score[-1].weight, 4.0)
    return net.eval()


def test_the_output_block_reads_any_finest_map():
    decoder = GridNetDecoder(FeatureSpec((8, 16), (4, 8)), 3)
    assert decoder([torch.rand(1, 8, 10, 12), torch.rand(1, 16, 5, 6)]).shape == (1, 3, 10, 12)
