"""Convolutional neural fabrics: grid, links, pruning, budget."""

import copy
import math
import random
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from densepred.balance.task_losses import TaskLosses
from densepred.callbacks.averaging import EMA
from densepred.callbacks.prune_links import PruneLinks
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.fabric import FabricEncoder
from densepred.encoders.fabric_layers import FabricLink, HardConcreteGate
from densepred.encoders.fabric_links import START, Link, Node, all_links
from densepred.encoders.fabric_pruning import closed_links, link_strengths, weakest_links
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference.checkpoint import load_network
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.penalties import Penalised, penalties_of
from densepred.tasks.segmentation import Segmentation
from tests.test_module import loader, trainer

# layers, scales, channels of the maps, channels of the image, classes, what is read at the end
PUBLISHED = {
    "Part Labels": (8, 9, 64, 3, 3, "finest", 7_064_451),
    "MNIST": (8, 6, 64, 1, 10, "coarsest", 4_512_650),
    "MNIST, the release's demonstration": (9, 6, 27, 1, 10, "coarsest", 912_610),
    "CIFAR-10": (8, 6, 128, 3, 10, "coarsest", 18_022_410),
}


def network(layers=3, scales=3, channels=8, classes=4, **options) -> DenseNetwork:
    return DenseNetwork(FabricEncoder(layers, scales, channels, **options), PointwiseDecoder, {"labels": classes})


def module(**options) -> DensePredictor:
    encoder = FabricEncoder(layers=3, scales=3, channels=6, **options)
    return DensePredictor(encoder, PointwiseDecoder, [Segmentation(4)])


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_fabrics_have_their_number_of_parameters(name):
    layers, scales, channels, image, classes, ending, expected = PUBLISHED[name]
    with torch.device("meta"):
        net = network(layers, scales, channels, classes, ending=ending, in_channels=image)
    assert parameters(net) == expected


@pytest.mark.parametrize("ending", ["finest", "coarsest"])
@pytest.mark.parametrize(("layers", "scales", "channels"), [(2, 1, 5), (8, 6, 32), (16, 5, 16), (3, 4, 3)])
def test_a_sparse_fabric_has_27_weights_a_channel_and_link_less_those_beyond_the_first_and_last(
    layers, scales, channels, ending
):
    with torch.device("meta"):
        net = network(layers, scales, channels, 10, kind="sparse", ending=ending)
    links = (layers - 1) * (3 * scales - 2) + 2 * (scales - 1)
    weights = 27 * channels - (18 if channels > 3 else 0)
    nodes = layers * scales
    expected = links * (weights + channels) + 28 * channels + 2 * nodes * channels + 10 * (channels + 1)
    assert parameters(net) == expected
    assert links * weights < 81 * layers * scales * channels  # as printed, links beyond the borders included


@pytest.mark.parametrize(
    ("layers", "scales", "ending", "side", "image", "classes", "expected"),
    [(8, 6, "coarsest", 32, 1, 10, 0.818), (8, 9, "finest", 256, 3, 3, 54.9)],
)
def test_the_published_fabrics_multiply_as_often_where_zeros_are_multiplied_too(
    layers, scales, ending, side, image, classes, expected
):
    links = all_links(layers, scales, ending)
    inside = sum(9 * 64 * 64 * (side // 2**link.target.scale) ** 2 for link in links)
    score = 64 * classes * (1 if ending == "coarsest" else side**2)
    digits = 3 if expected < 1 else 1
    assert round((inside + 9 * 64 * image * side**2 + score) / 1e9, digits) == expected


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("ending", ["finest", "coarsest"])
def test_what_links_cost_is_what_a_counter_of_operations_sees(kind, ending):
    encoder = FabricEncoder(4, 4, 8, kind, ending).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 3, 32, 48))
    links = sum(link.cost(8, kind, "operations") for link in encoder.present())
    assert counter.get_total_flops() / 2 == (links + 9 * 8 * 3) * 32 * 48
    weights = sum(link.cost(8, kind, "parameters") for link in encoder.present())
    assert weights == sum(link.weight.numel() for link in encoder.links.values())


def test_each_scale_is_half_as_large_down_to_a_single_cell():
    encoder = FabricEncoder(layers=2, scales=7, channels=4).eval()
    sizes = {}
    for key, norm in encoder.norms.items():
        norm.register_forward_hook(lambda _, values, out, key=key: sizes.update({key: tuple(out.shape[-2:])}))
    encoder(torch.zeros(1, 3, 64, 128))
    assert sizes == {f"{c}_{s}": (64 >> s, 128 >> s) for c in (1, 2) for s in range(7)}


def zero_inserted(values: torch.Tensor) -> torch.Tensor:
    larger = values.new_zeros(*values.shape[:2], 2 * values.shape[2], 2 * values.shape[3])
    larger[..., ::2, ::2] = values
    return larger


def plain(link: FabricLink, values: torch.Tensor) -> torch.Tensor:
    """What a link is, in words of convolutions alone."""
    if link.step < 0:
        values = zero_inserted(values)
    return F.conv2d(values, link.kernel(), link.bias, stride=2 if link.step > 0 else 1, padding=1)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_link_is_a_convolution_and_upwards_one_of_values_among_zeros(kind, target):
    link = FabricLink(Link(Node(1, 1), Node(2, target)), 5, kind).double()
    values = torch.rand(2, 5, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(link(values), plain(link, values))


def test_a_channel_of_a_sparse_link_reads_itself_and_its_two_neighbours():
    link = FabricLink(Link(Node(1, 0), Node(2, 0)), 6, "sparse")
    read = link.kernel().abs().sum((2, 3)).ne(0)
    assert torch.equal(read, (torch.arange(6)[:, None] - torch.arange(6)).abs() <= 1)


@pytest.mark.parametrize("ending", ["finest", "coarsest"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_with_all_links_zero_but_one_chain_the_fabric_is_that_chain(ending, kind):
    torch.manual_seed(0)
    encoder = FabricEncoder(5, 4, 6, kind, ending).double().eval()
    rng = random.Random(1)
    chain, node = [], encoder.end
    while node != START:
        chain.insert(0, rng.choice([link for link in encoder.whole if link.target == node]))
        node = chain[0].source
    for link in encoder.whole:
        for parameter in encoder.links[link.name].parameters():
            nn.init.normal_(parameter, 0, 0.3) if link in chain else nn.init.zeros_(parameter)
    image = torch.rand(1, 3, 16, 24, dtype=torch.float64)
    values = F.relu(encoder.norms["1_0"](encoder.image(image)))
    for link in chain:
        norm = encoder.norms[f"{link.target.column}_{link.target.scale}"]
        values = F.relu(norm(plain(encoder.links[link.name], values)))
    torch.testing.assert_close(encoder(image)[0], values)
    # and pruned down to it
    encoder.remove([link.name for link in encoder.whole if link not in chain])
    assert len(encoder.norms) == len(chain) + 1
    torch.testing.assert_close(encoder(image)[0], values)


def test_weights_start_as_released():
    dense, sparse = FabricEncoder(3, 3, 32), FabricEncoder(3, 3, 32, "sparse")
    weights = torch.cat([link.weight.flatten() for link in dense.links.values()])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    bound = math.sqrt(3 / (9 * 32))  # Caffe's xavier: over all channels, also those that are masked afterwards
    largest = max(link.weight.abs().max().item() for link in sparse.links.values())
    assert 0.95 * bound < largest <= bound
    assert torch.cat([norm.bias for norm in dense.norms.values()]).unique().tolist() == [pytest.approx(0.001)]
    assert not any(link.bias.any() for link in dense.links.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 1}, "expected 2 or more layers"),
        ({"kind": "thin"}, "kind is 'thin'. Expected one of: dense, sparse"),
        ({"budget": 1.5}, "expected a share of the whole fabric's cost"),
        ({"removed": ["1_0_to_3_0"]}, "no link '1_0_to_3_0'"),
        ({"layers": 2, "scales": 1, "removed": ["1_0_to_2_0"]}, "nothing leads from the image to the fabric's end"),
    ],
)
def test_fabrics_that_cannot_be_are_refused_with_what_to_do(options, message):
    with pytest.raises(ConfigurationError, match=message):
        FabricEncoder(**{"layers": 3, "scales": 3, "channels": 4, **options})


def test_sizes_that_do_not_halve_evenly_are_refused_by_the_encoder_and_padded_by_the_network():
    net = network(scales=4).eval()
    assert net(torch.zeros(1, 3, 33, 47))["labels"].shape == (1, 4, 33, 47)
    with pytest.raises(ConfigurationError, match=r"the image is 33 x 47; with 4 scales .* multiples of 8"):
        net.encoder(torch.zeros(1, 3, 33, 47))


def test_what_lies_on_no_way_to_the_end_goes_too_and_every_way_that_is_left_is_kept():
    encoder = FabricEncoder(layers=3, scales=2, channels=4)
    # nothing reads node (2, 1) any more, so nothing needs to lead there
    gone = encoder.remove(["2_1_to_3_1", "2_1_to_3_0"])
    assert set(gone) == {"2_1_to_3_1", "2_1_to_3_0", "1_1_to_2_1", "1_0_to_2_1"}
    assert "2_1" not in encoder.norms
    assert encoder.init_args["removed"] == encoder.removed
    out = encoder(torch.rand(2, 3, 8, 8))[0]
    out.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_removal_that_would_cut_the_fabric_is_refused_and_leaves_it_whole():
    encoder = FabricEncoder(layers=2, scales=2, channels=4)
    with pytest.raises(ConfigurationError, match="nothing leads from the image"):
        encoder.remove(["1_0_to_1_1", "1_0_to_2_0", "1_0_to_2_1"])
    assert len(encoder.links) == len(encoder.whole)
    assert encoder.removed == []


def test_strength_is_the_mean_square_and_its_part_of_the_node_and_the_scale_of_a_node_is_nothing():
    encoder = FabricEncoder(layers=3, scales=2, channels=3)
    strengths = {name: link.weight.square().mean().item() for name, link in encoder.links.items()}
    assert link_strengths(encoder, "weight") == pytest.approx(strengths)
    before = link_strengths(encoder)
    node = sum(value for name, value in strengths.items() if name.endswith("_to_2_0"))
    assert before["1_0_to_2_0"] == pytest.approx(strengths["1_0_to_2_0"] / node)
    for name, link in encoder.links.items():
        if name.endswith("_to_2_0"):
            link.weight.data *= 100
    assert link_strengths(encoder) == pytest.approx(before)


def test_the_weakest_links_go_up_to_the_share_and_the_last_way_stays_however_weak():
    encoder = FabricEncoder(layers=4, scales=3, channels=4)
    for value, link in enumerate(encoder.links.values(), start=1):
        nn.init.constant_(link.weight, value)
    chosen = weakest_links(encoder, 0.25, "weight")
    assert 0 < len(chosen) <= round(0.25 * len(encoder.links))
    # the weakest of all would take 7 of 20 along: the way to the coarser scales
    assert next(iter(encoder.links)) not in chosen
    most = weakest_links(encoder, 0.99, "weight")
    left = copy.deepcopy(encoder)
    left.remove(most)
    assert left(torch.rand(2, 3, 8, 8))[0].shape == (2, 4, 8, 8)
    # what is left is a single chain: no link of it could go
    assert weakest_links(left, 0.99, "weight") == []
    assert len(left.links) == len(left.norms) - 1


@pytest.mark.parametrize("budget", [None, 0.5])
def test_links_of_no_weight_can_go_without_a_change(budget):
    torch.manual_seed(0)
    encoder = FabricEncoder(layers=4, scales=3, channels=4, budget=budget).eval()
    weak = ["1_1_to_2_0", "2_2_to_3_2", "3_1_to_4_2"]
    for name in weak:
        nn.init.zeros_(encoder.links[name].weight)
    image = torch.rand(1, 3, 16, 16)
    expected = encoder(image)[0]
    assert expected.any()
    gone = encoder.remove(weakest_links(encoder, len(weak) / len(encoder.links)))
    assert set(gone) == set(weak)
    torch.testing.assert_close(encoder(image)[0], expected)


def test_a_state_of_a_pruned_fabric_prunes_the_whole_one_alike():
    torch.manual_seed(0)
    pruned = network(layers=4)
    pruned.encoder.remove(weakest_links(pruned.encoder, 0.5))
    whole = network(layers=4)
    whole.load_state_dict(pruned.state_dict())
    assert whole.encoder.removed == pruned.encoder.removed
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(whole.eval()(image)["labels"], pruned.eval()(image)["labels"])


@pytest.mark.parametrize("damage", ["1_0_to_2_0", "4_0", "other"])
def test_a_state_that_lacks_what_no_pruning_takes_is_refused(damage):
    state = network(layers=5 if damage == "other" else 4).state_dict()
    # a norm without which its links cannot be, weights of a link whose bias is there, or of a fabric of five layers
    state = {key: value for key, value in state.items() if not key.endswith(f"{damage}.weight")}
    net = network(layers=4)
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
        net.load_state_dict(state)
    assert net.encoder.removed == []


def test_a_training_goes_on_with_what_is_left_and_its_checkpoint_rebuilds_that(tmp_path):
    built = module()
    whole = len(built.network.encoder.links)
    prune = PruneLinks(epochs=[1], share=0.4)
    run = trainer(tmp_path, max_epochs=3, callbacks=[prune], enable_checkpointing=False)
    run.fit(built, loader())
    encoder = built.network.encoder
    assert whole - round(0.4 * whole) <= len(encoder.links) < whole
    held = [p for group in run.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in built.parameters()}
    assert {id(p) for p in run.optimizers[0].state} == {id(p) for p in held}
    names = [name for group in run.optimizers[0].param_groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in built.network.named_parameters())
    run.save_checkpoint(tmp_path / "x.ckpt")
    plain_values = torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]
    assert plain_values["encoder"]["init_args"]["removed"] == encoder.removed
    image = torch.rand(1, 3, 40, 56)
    expected = built.eval()(image)["segmentation"]
    again = DensePredictor.load_from_checkpoint(tmp_path / "x.ckpt").eval()
    assert torch.equal(again(image)["segmentation"], expected)
    light, _ = load_network(tmp_path / "x.ckpt")
    assert light.encoder.removed == encoder.removed


def test_a_pruned_run_resumes_from_the_configuration_of_the_whole_fabric_as_if_never_interrupted(tmp_path):
    def fit(built, epochs, ckpt_path=None):
        prune = PruneLinks(epochs=[1], share=0.4)
        run = trainer(tmp_path, max_epochs=epochs, callbacks=[prune], enable_checkpointing=False)
        run.fit(built, loader(), ckpt_path=ckpt_path)
        return run

    pl.seed_everything(0)
    start = module().state_dict()
    straight, cut, resumed = module(), module(), module()
    for built in (straight, cut):
        built.load_state_dict(start)
    fit(straight, 3)
    fit(cut, 2).save_checkpoint(tmp_path / "cut.ckpt")
    fit(resumed, 3, tmp_path / "cut.ckpt")
    assert resumed.network.encoder.removed == straight.network.encoder.removed != []
    assert resumed.hparams["encoder"]["init_args"]["removed"] == resumed.network.encoder.removed
    torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)


def test_pruning_refuses_other_encoders_and_averages_of_weights(tmp_path):
    other = DensePredictor(ResNetEncoder("resnet18"), PointwiseDecoder, [Segmentation(4)])
    with pytest.raises(ConfigurationError, match="removes links of a FabricEncoder; this encoder is a ResNetEncoder"):
        trainer(tmp_path, callbacks=[PruneLinks([0])]).fit(other, loader())
    with pytest.raises(ConfigurationError, match="EMA averages the weights of a network that must not change"):
        trainer(tmp_path, callbacks=[PruneLinks([0]), EMA()]).fit(module(), loader())
    with pytest.raises(ConfigurationError, match="expected at least one epoch"):
        PruneLinks([])


def test_a_run_that_ends_before_it_prunes_says_so(tmp_path):
    with pytest.warns(UserWarning, match=r"epochs are \[1, 4\], counted from 0, but the run ends after 2"):
        trainer(tmp_path, max_epochs=2, callbacks=[PruneLinks([1, 4], share=0.2)]).fit(module(), loader())


@pytest.mark.parametrize("openness", [-2.0, 0.0, 1.5])
def test_a_gate_is_open_as_often_as_it_says_and_its_values_stay_within_0_and_1(openness):
    torch.manual_seed(0)
    gate = HardConcreteGate(openness)
    values = torch.stack([gate() for _ in range(4000)])
    assert 0 <= values.min() <= values.max() <= 1
    p = gate.open_probability().item()
    assert values.gt(0).float().mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))
    # of Louizos et al., (12): 1 - P(s <= 0) of the stretched variable
    assert p == pytest.approx(1 / (1 + math.exp(-(openness - 2 / 3 * math.log(0.1 / 1.1)))))


def test_a_budget_adds_what_is_spent_above_it_and_nothing_below():
    encoder = FabricEncoder(layers=3, scales=3, channels=4, budget=0.25, budget_weight=3.0)
    links = list(encoder.links.values())
    for link in links:
        nn.init.constant_(link.gate.log_alpha, 30.0)  # open for certain
    assert encoder.penalties()["budget"].item() == pytest.approx(3.0 * 0.75)
    for link in links:
        nn.init.constant_(link.gate.log_alpha, -30.0)
    assert encoder.penalties()["budget"].item() == 0
    nn.init.constant_(encoder.links["1_0_to_2_0"].gate.log_alpha, 30.0)
    # at the finest scale a link costs 1, at stride 2 or upwards from there 1/4, ...
    whole = sum(0.25 ** max(link.source.scale, link.target.scale) for link in encoder.whole)
    assert encoder.spent().item() == pytest.approx(1 / whole)
    assert FabricEncoder(3, 3, 4, budget=0.5, cost="parameters").spent().item() == pytest.approx(
        HardConcreteGate().open_probability().item()
    )
    assert FabricEncoder(3, 3, 4).penalties() == {}


def test_every_gate_learns_from_the_budget_by_what_its_link_costs():
    encoder = FabricEncoder(layers=3, scales=3, channels=4, budget=0.25)
    encoder.penalties()["budget"].backward()
    fine, coarse = (encoder.links[name].gate.log_alpha.grad.item() for name in ("1_0_to_2_0", "1_2_to_2_2"))
    assert fine > 0
    assert fine / coarse == pytest.approx(16)


def test_penalties_join_the_training_loss_alone_and_no_balance_weighs_them(tmp_path):
    built = module(budget=0.1, budget_weight=2.0)
    run = trainer(tmp_path, limit_train_batches=1, enable_checkpointing=False)
    expected = built.network.encoder.penalties()["budget"].item()
    run.fit(built, loader(), loader())
    logged = {key: value.item() for key, value in run.logged_metrics.items()}
    assert logged["train/penalty/budget"] == pytest.approx(expected)
    assert logged["train/loss"] == pytest.approx(logged["train/segmentation/loss"] + expected)
    assert "val/penalty/budget" not in logged
    step = TaskLosses({"one": torch.tensor(2.0), "other": torch.tensor(4.0)}, {"one": 1.0, "other": 1.0}, (),
                      {"budget": torch.tensor(0.5)})  # fmt: skip
    assert step.total.item() == 6.5

    class Halving(nn.Module):
        def forward(self, losses):
            return losses / 2

        def weights(self):
            return torch.tensor([0.5, 0.5])

    assert step.balance(Halving()).item() == 3.5


def test_two_parts_with_penalties_of_one_name_are_refused():
    class Part(nn.Module, Penalised):
        def penalties(self):
            return {"size": torch.tensor(1.0)}

    with pytest.raises(ConfigurationError, match="has a penalty 'size' already"):
        penalties_of(nn.ModuleList([Part(), Part()]))


def test_a_trained_budget_closes_gates_whose_links_then_go_and_the_rest_keeps_to_it(tmp_path):
    pl.seed_everything(0)
    encoder = FabricEncoder(layers=4, scales=3, channels=4, budget=0.15, budget_weight=50.0)
    optimizer = partial(torch.optim.Adam, lr=0.4)
    built = DensePredictor(encoder, PointwiseDecoder, [Segmentation(4)], optimizer=optimizer)
    prune = PruneLinks(epochs=[14], share=0.0)
    trainer(tmp_path, max_epochs=15, callbacks=[prune], enable_checkpointing=False).fit(built, loader(2, 2))
    assert encoder.removed
    assert encoder.spent().item() < 0.2
    left = sum(link.cost(4, "dense", "operations") for link in encoder.present())
    assert left < 0.75 * sum(link.cost(4, "dense", "operations") for link in encoder.whole)


def test_closed_gates_pass_nothing_and_go_first():
    torch.manual_seed(0)
    encoder = FabricEncoder(layers=4, scales=3, channels=4, budget=0.5).eval()
    closed = {"1_1_to_2_1", "2_0_to_3_1", "3_2_to_4_1"}
    for name in closed:
        nn.init.constant_(encoder.links[name].gate.log_alpha, -5.0)
        nn.init.normal_(encoder.links[name].weight, 0, 10.0)
    assert set(closed_links(encoder)) == closed
    image = torch.rand(1, 3, 16, 16)
    expected = encoder(image)[0]
    assert set(encoder.remove(weakest_links(encoder, 0.0))) == closed
    torch.testing.assert_close(encoder(image)[0], expected)
