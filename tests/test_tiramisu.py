"""FC-DenseNet 56, 67 and 103: published numbers, the release's forward pass, options, and the decoder elsewhere."""

import copy
import math
from functools import partial

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from densepred.decoders.base import DecoderFactory
from densepred.decoders.fpn import FPNDecoder
from densepred.decoders.tiramisu import TiramisuDecoder, TransitionUp
from densepred.decoders.unet import UNetDecoder
from densepred.dense_block import DenseBatchNorm, DenseBlock, DenseLayer, DenseOptions
from densepred.encoders.base import Encoder
from densepred.encoders.fcdensenet import FCDenseNetEncoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.network import DenseNetwork

SIZES = {"layers": (1, 2, 2), "bottleneck": 3, "growth": 4, "first": 6}
"""A network small enough to run."""


def published(number: int, padded: bool = False, **options) -> DenseNetwork:
    name = f"fc_densenet{number}"
    return DenseNetwork(
        FCDenseNetEncoder(name, padded=padded, **options),
        partial(TiramisuDecoder, name=name, **options),
        {"labels": 11},
    )


def small(padded: bool = False, **options) -> DenseNetwork:
    decoder = partial(TiramisuDecoder, layers=(2, 2, 1), growth=4, **options)
    return DenseNetwork(FCDenseNetEncoder(**SIZES, padded=padded, **options), decoder, {"labels": 5})


def convolutions(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]


def silent(net: nn.Module) -> list[str]:
    """Parameters that no gradient reached."""
    return [key for key, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


# ---------------------------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(("number", "count"), [(56, 1_376_795), (67, 3_463_243), (103, 9_322_091)])
def test_it_has_the_published_number_of_parameters(number, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in published(number).parameters()) == count


@pytest.mark.parametrize(("number", "count"), [(56, 1_397_963), (67, 3_502_923), (103, 9_425_163)])
def test_with_stored_means_and_deviations_it_has_theanos_number(number, count):
    with torch.device("meta"):
        net = published(number)
    stored = sum(buffer.numel() for key, buffer in net.named_buffers() if "running" in key)
    assert sum(p.numel() for p in net.parameters()) + stored == count


@pytest.mark.parametrize(("number", "count"), [(56, 1_375_008), (67, 3_460_464), (103, 9_318_064)])
def test_without_biases_of_convolutions_it_has_the_number_of_other_builds(number, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in published(number, bias=False).parameters()) == count


@pytest.mark.parametrize(("number", "giga"), [(56, 8.92), (67, 20.90), (103, 20.07)])
def test_it_costs_the_published_number_of_multiplications(number, giga):
    with torch.device("meta"):
        net = published(number).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    assert round(counter.get_total_flops() / 2e9, 2) == giga


@pytest.mark.parametrize("number", [56, 67, 103])
def test_its_name_is_its_number_of_convolutions(number):
    with torch.device("meta"):
        assert len(convolutions(published(number))) == number


def test_blocks_have_the_published_channels_and_sizes_on_a_camvid_frame():
    seen = []

    def note(block, inputs, new):
        maps = [*inputs[0], *new]
        seen.append((sum(m.shape[1] for m in maps), *maps[0].shape[-2:]))

    with torch.device("meta"):
        net = published(103).eval()
        for module in net.modules():
            if isinstance(module, DenseBlock):
                module.register_forward_hook(note)
        planes = net.planes(torch.empty(1, 3, 360, 480))["labels"]
    assert seen == [
        (112, 360, 480), (192, 180, 240), (304, 90, 120), (464, 45, 60), (656, 22, 30), (896, 11, 15),
        (1088, 22, 30), (816, 45, 60), (576, 90, 120), (384, 180, 240), (256, 360, 480),
    ]  # fmt: skip
    assert planes.shape == (1, 11, 360, 480)


def test_weights_are_uniform_after_he_and_biases_zero():
    for layer in convolutions(published(56)):
        # of a transposed convolution too: the published ones keep the channels, so either reading of fan-in agrees
        bound = math.sqrt(6 / layer.weight[0].numel())
        assert layer.weight.abs().max() <= bound
        if layer.weight.numel() > 2000:
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert not layer.bias.any()


def test_every_layer_and_transition_down_drops_a_fifth_in_training():
    with torch.device("meta"):
        dropping = [module.p for module in published(103).modules() if isinstance(module, nn.Dropout)]
    assert dropping == [0.2] * (2 * 38 + 15 + 5)
    new = DenseLayer(64, 64, 1, DenseOptions()).train()([torch.rand(1, 64, 40, 40)])
    assert (new == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


# ---------------------------------------------------------------------------------------------- the release


def release(net: DenseNetwork, image: torch.Tensor) -> torch.Tensor:
    """The published forward pass, written out with the network's weights: lists, stacks and centre crops."""

    def layer(module, stack):
        norm = module.norm
        scale = norm.weight / (norm.running_var + 1e-4).sqrt()
        values = (stack - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        return F.conv2d(values.relu(), module.conv.weight, module.conv.bias, padding=module.conv.kernel_size[0] // 2)

    encoder, decoder = net.encoder, net.decoders["labels"]
    stack = F.conv2d(image, encoder.first.weight, encoder.first.bias, padding=1)
    skips = []
    for block, down in zip(encoder.blocks, encoder.downs, strict=True):
        for module in block.layers:
            stack = torch.cat([stack, layer(module, stack)], dim=1)
        skips.append(stack)
        stack = F.max_pool2d(layer(down, stack), 2)
    to_upsample = []
    for module in encoder.bottleneck.layers:
        to_upsample.append(layer(module, stack))
        stack = torch.cat([stack, to_upsample[-1]], dim=1)
    for up, block, skip in zip(decoder.ups, decoder.blocks, skips[::-1], strict=True):
        larger = F.conv_transpose2d(torch.cat(to_upsample, dim=1), up.conv.weight, up.conv.bias, stride=2)
        top, left = ((larger.shape[i] - skip.shape[i]) // 2 for i in (2, 3))
        stack = torch.cat([larger[:, :, top : top + skip.shape[2], left : left + skip.shape[3]], skip], dim=1)
        to_upsample = []
        for module in block.layers:
            to_upsample.append(layer(module, stack))
            stack = torch.cat([stack, to_upsample[-1]], dim=1)
    return F.conv2d(stack, decoder.score.weight, decoder.score.bias)


def random_statistics(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor, 0, 0.2)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 64), (45, 63), (33, 47)])
def test_planes_are_those_of_the_release_written_out_at_even_and_odd_sizes(size):
    net = small().eval()
    random_statistics(net)
    image = torch.rand(2, 3, *size)
    torch.testing.assert_close(net(image)["labels"], release(net, image), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_image_of_whole_cells_is_the_same_padded_or_not():
    as_published, padded = small().eval(), small(padded=True).eval()
    padded.load_state_dict(as_published.state_dict())
    image = torch.rand(1, 3, 48, 64)
    assert torch.equal(padded(image)["labels"], as_published(image)["labels"])
    assert (as_published.encoder.multiple, padded.encoder.multiple) == (1, 8)


@torch.no_grad()
def test_a_picture_goes_in_as_it_is_without_normalisation():
    encoder = FCDenseNetEncoder(**SIZES).eval()
    image = torch.randint(256, (1, 3, 40, 40), dtype=torch.uint8)
    torch.testing.assert_close(encoder.normalise(image), image / 255)


# ---------------------------------------------------------------------------------------------- batch statistics


def varied(net: nn.Module) -> torch.Tensor:
    """A batch whose statistics are far from the running averages of a new network."""
    return torch.rand(3, 3, 40, 48) * torch.tensor([0.2, 0.6, 1.0]).view(3, 1, 1, 1)


@torch.no_grad()
def test_with_batch_statistics_evaluation_normalises_as_training_does():
    plain = small(dropout=0.0)
    current = small(dropout=0.0, batch_statistics=True)
    current.load_state_dict(plain.state_dict())  # the option changes no tensor: it may be set for a finished checkpoint
    image = varied(plain)
    running = copy.deepcopy(plain.state_dict())
    evaluated = current.eval()(image)["labels"]
    assert all(torch.equal(current.state_dict()[key], running[key]) for key in running)
    trained = copy.deepcopy(plain).train()(image)["labels"]
    torch.testing.assert_close(evaluated, trained)
    assert not torch.allclose(plain.eval()(image)["labels"], trained, atol=0.1)


@torch.no_grad()
def test_with_batch_statistics_a_picture_depends_on_its_batch_and_without_it_does_not():
    for batch_statistics in (True, False):
        net = small(batch_statistics=batch_statistics).eval()
        image = varied(net)
        together, alone = net(image)["labels"][:1], net(image[:1])["labels"]
        assert torch.allclose(together, alone, atol=1e-5) is not batch_statistics


def test_batch_norm_of_one_value_uses_the_averages_and_leaves_them():
    norm = DenseBatchNorm(3, batch_statistics=True)
    random_statistics(nn.ModuleList([norm]))
    before = norm.running_mean.clone()
    one = torch.rand(1, 3, 1, 1)
    expected = (one - before.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + 1e-4).sqrt()
    expected = expected * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    for mode in (True, False):
        torch.testing.assert_close(norm.train(mode)(one), expected)
    assert torch.equal(norm.running_mean, before)


# ---------------------------------------------------------------------------------------------- recomputation


def trained(recompute: bool, backwards: int = 1) -> tuple[DenseNetwork, torch.Tensor]:
    """A network of fixed weights after a training step's backward pass, dropout included, and its planes."""
    torch.manual_seed(3)
    net = small(recompute=recompute).train()
    image = torch.rand(2, 3, 45, 47)
    torch.manual_seed(4)
    planes = net(image)["labels"]
    for _ in range(backwards):
        planes.square().mean().backward(retain_graph=True)
    return net, planes


@pytest.mark.parametrize("backwards", [1, 2])
def test_recomputation_changes_no_plane_no_gradient_and_counts_statistics_once(backwards):
    (ours, planes), (theirs, expected) = trained(True, backwards), trained(False, backwards)
    assert torch.equal(planes, expected)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, key=key: f"{key}: {text}")
    for (key, p), q in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert torch.equal(p, q), key
    counts = [p.item() for key, p in ours.named_buffers() if key.endswith("num_batches_tracked")]
    assert set(counts) == {1}


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made inside it that are still alive."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self) -> int:
        return sum(count for storage, count in self.made.values() if not storage.expired())


def kept_for_backward(recompute: bool, number: int = 67) -> int:
    net = published(number, recompute=recompute).train()
    with LiveBytes() as bytes_:
        planes = net(torch.rand(1, 3, 32, 32))["labels"]
        return bytes_.alive() - planes.untyped_storage().nbytes()


def test_recomputation_keeps_less_than_a_third_for_the_backward_pass():
    assert kept_for_backward(True) < kept_for_backward(False) / 3


def test_recomputation_runs_no_convolution_twice():
    flops = []
    for recompute in (False, True):
        planes = small(recompute=recompute).train()
        with FlopCounterMode(display=False) as counter:
            planes(torch.rand(1, 3, 40, 40))["labels"].sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1]


# ------------------------------------------------------------------------------------------ any encoder, any options

ENCODERS = {
    "resnet18": partial(ResNetEncoder, "resnet18"),
    "resnet18 OS8": partial(ResNetEncoder, "resnet18", output_stride=8),
    "vgg11 conv": partial(VGGEncoder, "vgg11"),
    "vgg11_bn pool OS16": partial(VGGEncoder, "vgg11_bn", maps="pool", output_stride=16),
    "FC-DenseNet": partial(FCDenseNetEncoder, **SIZES),
    "FC-DenseNet as published": partial(FCDenseNetEncoder, **SIZES, padded=False),
    "FC-DenseNet of five levels": partial(FCDenseNetEncoder, layers=(1,) * 5, bottleneck=2, growth=4, first=4),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_odd_image_alone_in_training_comes_back_at_its_size_and_reaches_every_parameter(name):
    encoder = ENCODERS[name]()
    count = len(encoder.spec.strides) - 1
    net = DenseNetwork(encoder, partial(TiramisuDecoder, layers=(2,) * count, growth=4, width=8), {"labels": 5})
    planes = net.train()(torch.rand(1, 3, 33, 47))["labels"]
    assert planes.shape == (1, 5, 33, 47)
    (planes * torch.rand_like(planes)).sum().backward()
    assert silent(net) == []


@torch.no_grad()
@pytest.mark.parametrize("decoder", [UNetDecoder, FPNDecoder])
def test_planes_of_another_decoder_cover_the_padded_image_exactly(decoder):
    net = DenseNetwork(FCDenseNetEncoder(**SIZES), decoder, {"labels": 2}).eval()
    planes = net.planes(torch.rand(1, 3, 45, 61))["labels"]
    stride = 48 // planes.shape[-2]
    assert tuple(planes.shape[-2:]) == (48 // stride, 64 // stride)


@pytest.mark.parametrize("decoder", [UNetDecoder, FPNDecoder])
def test_maps_that_do_not_cover_the_image_are_refused_by_other_decoders(decoder):
    encoder = FCDenseNetEncoder(**SIZES, padded=False)
    with pytest.raises(ConfigurationError, match="`padded`"):
        decoder(encoder.spec, 2)


def test_other_encoders_get_the_published_layers_at_their_strides_and_a_bounded_width():
    decoder = TiramisuDecoder(FeatureSpec((8, 16, 32, 64, 512), (2, 4, 8, 16, 32)), 3)
    assert [len(block.layers) for block in decoder.blocks] == [12, 10, 7, 5]
    assert decoder.ups[0].conv.weight.shape == (512, 256, 3, 3)
    dilated = TiramisuDecoder(FeatureSpec((8, 16, 32, 64), (4, 8, 8, 8)), 3, name="fc_densenet67")
    assert [len(block.layers) for block in dilated.blocks] == [5, 5, 5]
    assert [up.factor for up in dilated.ups] == [1, 1, 2]


def test_maps_of_one_stride_are_joined_at_that_stride():
    spec = FeatureSpec((4, 4, 4), (16, 16, 16))
    planes = TiramisuDecoder(spec, 2, layers=(1, 1), growth=4)([torch.rand(1, 4, 3, 5) for _ in range(3)])
    assert planes.shape == (1, 2, 3, 5)


def test_further_blocks_go_on_to_the_image():
    spec = FeatureSpec((4, 6, 8), (4, 8, 16))
    features = [torch.rand(1, c, 64 // s, 96 // s) for c, s in zip(*spec[:2], strict=True)]
    assert TiramisuDecoder(spec, 2, layers=(2, 2, 1, 1), growth=4)(features).shape == (1, 2, 64, 96)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_a_transition_up_reaches_every_finer_map_and_keeps_cells_in_place(factor):
    up = TransitionUp(1, 1, factor)
    nn.init.ones_(up.conv.weight)
    cell = torch.zeros(1, 1, 7, 7)
    cell[..., 3, 3] = 1
    for size in range(7 * factor, 8 * factor):
        larger = up(cell, torch.empty(1, 9, size, size))
        assert larger.shape == (1, 1, size, size)
        rows = larger[0, 0, :, 3 * factor].nonzero().flatten()
        # the cell covers [3 s, 4 s); it is spread as far beyond on either side, or one pixel further on the right
        left, right = 3 * factor - rows[0].item(), rows[-1].item() - (4 * factor - 1)
        assert left >= 0
        assert right - left in (0, 1)


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "weight", "none"])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_norm_trains_and_overwrites_no_map(norm, recompute):
    block = DenseBlock(4, 2, 4, DenseOptions(norm=norm, recompute=recompute)).train()
    feature = torch.randn(2, 4, 6, 6, requires_grad=True)
    before = feature.detach().clone()
    torch.cat(block([feature]), dim=1).square().sum().backward()
    assert torch.equal(feature, before)
    assert silent(block) == []


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "gelu", "silu", "maxout", "none"])
def test_every_activation_trains(activation):
    net = small(activation=activation, norm="weight").train()
    net(torch.rand(1, 3, 40, 40))["labels"].square().sum().backward()
    assert silent(net) == []


def test_a_state_dict_and_a_copy_reproduce_the_planes_and_so_do_channels_last_export_and_compilation():
    net = small(recompute=True).eval()
    random_statistics(net)
    image = torch.rand(1, 3, 45, 63)
    other = small().eval()
    other.load_state_dict(net.state_dict())
    exported = torch.export.export(net, (image,)).module()
    compiled = torch.compile(net, backend="aot_eager")
    with torch.no_grad():
        expected = net(image)["labels"]
        for twin in (other, copy.deepcopy(net), exported, compiled):
            torch.testing.assert_close(twin(image)["labels"], expected)
        last = net.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))["labels"]
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


def test_recomputation_is_left_to_the_compiler_and_trains_the_same():
    layer = DenseLayer(4, 3, 3, DenseOptions(dropout=0.0, recompute=True)).train()
    twin = copy.deepcopy(layer)
    feature = torch.rand(2, 4, 8, 8)
    layer([feature]).square().mean().backward()
    torch.compile(twin, backend="aot_eager", fullgraph=True)([feature]).square().mean().backward()
    for p, q in zip(twin.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert twin.norm.num_batches_tracked == 1


@pytest.mark.parametrize("recompute", [False, True])
def test_half_precision_trains(recompute):
    net = small(recompute=recompute).train()
    with torch.autocast("cpu", torch.bfloat16):
        planes = net(torch.rand(1, 3, 40, 40))["labels"]
    assert planes.dtype == torch.bfloat16
    planes.float().square().mean().backward()
    assert silent(net) == []


# ---------------------------------------------------------------------------------------------- errors, configuration


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (FeatureSpec((8,), (4,)), {}, "yields one, of stride 4. Use PointwiseDecoder"),
        (FeatureSpec((8, 8), (4, 8)), {"layers": (2, 2, 2, 2)}, r"Give 1 \(one for each skip\) to 3 \(up to the image"),
        (FeatureSpec((8, 8), (4, 8)), {"layers": (0,)}, r"layers, each at least 1"),
        (FeatureSpec((8, 8), (4, 8)), {"growth": 0}, "growth is 0. Expected 1 map or more"),
        (FeatureSpec((8, 8), (4, 6)), {}, "strides \\(4, 6\\). Use UNetDecoder"),
        (FeatureSpec((8, 8), (1, 2), (3.0, 4.5)), {}, "leave margins .*first cells are centred on pixels"),
        (FeatureSpec((8, 8), (1, 2)), {"name": "densenet"}, "name is 'densenet'. Expected one of: fc_densenet56"),
        (FeatureSpec((7, 8), (1, 2)), {"activation": "maxout", "layers": (1,)}, "'maxout' pairs channels, .* reads 15"),
    ],
)
def test_what_cannot_be_built_says_why(spec, options, message):
    with pytest.raises(ConfigurationError, match=message):
        TiramisuDecoder(spec, 3, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "fc_densenet121"}, "name is 'fc_densenet121'. Expected one of: fc_densenet56"),
        ({"layers": ()}, "at least one block before the bottleneck"),
        ({"growth": 0}, "growth 0.*numbers of 1 or more"),
    ],
)
def test_what_the_encoder_cannot_be_says_why(options, message):
    with pytest.raises(ConfigurationError, match=message):
        FCDenseNetEncoder(**options)


def test_an_image_smaller_than_a_cell_is_refused():
    encoder = FCDenseNetEncoder(layers=(1,) * 5, bottleneck=1, growth=2, first=4, padded=False)
    with pytest.raises(ConfigurationError, match=r"the image is 31 x 64, .* 32 x 32 pixels"):
        encoder(torch.rand(1, 3, 31, 64))


def test_both_parts_are_built_from_a_config():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoder", type=Encoder)
    parser.add_argument("--decoder", type=DecoderFactory)
    config = {
        "encoder": {
            "class_path": "densepred.encoders.FCDenseNetEncoder",
            "init_args": {"layers": [1, 2], "bottleneck": 2, "growth": 4, "padded": False},
        },
        "decoder": {
            "class_path": "densepred.decoders.TiramisuDecoder",
            "init_args": {"layers": [2, 1], "growth": 4, "batch_statistics": True, "norm": "group"},
        },
    }
    built = parser.instantiate(parser.parse_object(config))
    net = DenseNetwork(built.encoder, built.decoder, {"labels": 2})
    assert net(torch.rand(1, 3, 37, 41))["labels"].shape == (1, 2, 37, 41)
