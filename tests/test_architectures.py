"""The contract of every encoder, of every decoder, and of every pair of them."""

import copy
import inspect
import itertools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from densepred import decoders, encoders
from densepred.errors import ConfigurationError
from densepred.network import DenseNetwork
from tests.catalogue import (
    DECODERS,
    ENCODERS,
    IMAGE_AS_FINEST,
    ONE_MAP,
    PAIRS,
    PARALLEL,
    PATCHES,
    READ_THE_FINEST_ALONE,
    READERS,
    REFUSED,
    SPEC,
    distance,
    leaves,
    needs_bfloat16,
    randomise_zeros,
    remembered,
    silent,
    whole,
)


@pytest.fixture(scope="module")
def net(request):
    encoder, decoder = request.param
    torch.manual_seed(0)
    return randomise_zeros(DenseNetwork(remembered(encoder), DECODERS[decoder], {"labels": 3}))


def pulled(planes: dict[str, Tensor]) -> Tensor:
    """All planes, those of earlier exits too, each weighted by chance."""
    return torch.stack([(value * torch.rand_like(value)).sum() for value in planes.values()]).sum()


@pytest.mark.parametrize("net", PAIRS, indirect=True, ids=[f"{e}-{d}" for e, d in PAIRS], scope="module")
class TestEveryPair:
    """On the encoder's real maps; that its own gradients and layouts are right is TestEveryEncoder's."""

    def test_an_odd_image_alone_in_training_comes_back_at_its_size_and_reaches_every_parameter(self, net, request):
        net.train().zero_grad()
        planes = net(torch.rand(1, 3, 33, 47))
        assert {value.shape for value in planes.values()} == {(1, 3, 33, 47)}
        maps = net.encoder.given
        before = [m.detach().clone() for m in maps]
        pulled(planes).backward()
        assert silent(net.decoders) == []
        assert all(torch.equal(m, b) for m, b in zip(maps, before, strict=True))  # the encoder's backward needs them
        read = [i for i, m in enumerate(maps) if m.grad is not None]
        assert all(maps[i].grad.isfinite().all() for i in read)
        encoder, decoder = request.node.callspec.params["net"]
        if decoder not in READ_THE_FINEST_ALONE and (len(read) == len(maps) or encoder not in PARALLEL):
            assert set().union(*(net.encoder.reached[i] for i in read)) == net.encoder.parameters_by_name

    @torch.no_grad()
    def test_planes_cover_the_padded_image_exactly(self, net, request):
        net.eval()
        image = torch.rand(1, 3, 65, 40)
        planes, (height, width) = net.planes(image)["labels"], net.padded_size(65, 40)
        if request.node.callspec.params["net"][0] in PATCHES:  # by a grid of their own
            assert net(image)["labels"].shape == (1, 3, 65, 40)
            return
        stride = height // planes.shape[-2]
        assert stride in (1, 2, 4, 8, 16, 32)
        assert (planes.shape[-2] * stride, planes.shape[-1] * stride) == (height, width)
        assert net(image)["labels"].shape == (1, 3, 65, 40)

    @torch.no_grad()
    def test_a_state_dict_carries_everything(self, net, request):
        image = torch.rand(1, 3, 65, 40)
        expected = net.eval().planes(image)["labels"]
        with torch.device("meta"):  # nothing of its own: what the state dict leaves out has no values
            twin = DECODERS[request.node.callspec.params["net"][1]](net.encoder.spec, 3).eval()
        twin.load_state_dict(net.decoders["labels"].state_dict(), assign=True)
        height, width = expected.shape[-2:]
        assert torch.equal(twin(net.encoder.given)[..., :height, :width], expected)

    @torch.no_grad()
    def test_channels_last_gives_the_same_planes(self, net, monkeypatch):
        image = torch.rand(1, 3, 65, 40)
        expected = net.eval().planes(image)["labels"]
        monkeypatch.setattr(net.encoder, "layout", torch.channels_last)
        planes = net.to(memory_format=torch.channels_last).planes(image)["labels"]
        net.to(memory_format=torch.contiguous_format)
        assert all(m.is_contiguous(memory_format=torch.channels_last) for m in net.encoder.given)
        assert distance(planes, expected) < 1e-4

    @needs_bfloat16
    def test_bfloat16_autocast_trains(self, net):
        net.train().zero_grad()
        # no smaller: on 2 x 2 cells a 7x7 convolution's gradient is not numbers in bfloat16 (torch 2.15, oneDNN on AMD)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            planes = net(torch.rand(1, 3, 70, 100))
            assert all(m.dtype == torch.bfloat16 for m in net.encoder.given)
        pulled(planes).backward()
        assert all(value.isfinite().all() for value in planes.values())
        assert silent(net.decoders) == []


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: "-".join(pair))
def test_a_pair_that_cannot_work_is_refused_with_what_to_do(pair):
    encoder, decoder = pair
    with torch.device("meta"):
        spec = ENCODERS[encoder]().spec
    with pytest.raises(ConfigurationError, match=REFUSED[pair]):
        DECODERS[decoder](spec, 3)


@pytest.fixture(scope="module")
def network(request):
    net = whole(request.param)
    net.zero_grad()
    return net


@pytest.mark.parametrize("network", ENCODERS, indirect=True, scope="module")
class TestEveryEncoder:
    def test_an_odd_image_alone_in_training_reaches_every_parameter(self, network, request):
        network.train().zero_grad()
        maps: list[Tensor] = []
        hook = network.encoder.register_forward_hook(lambda _, image, features: maps.extend(features))
        planes = network(torch.rand(1, 3, 33, 47))
        hook.remove()
        made = maps[1:] if request.node.callspec.params["network"] in IMAGE_AS_FINEST else maps
        assert all(leaves(m) for m in made)  # those that this decoder does not read
        pulled(planes).backward()
        assert planes["labels"].shape == (1, 3, 33, 47)
        assert silent(network) == []

    @needs_bfloat16
    def test_bfloat16_autocast_trains(self, network):
        network.train().zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            planes = network(torch.rand(1, 3, 33, 47))
        pulled(planes).backward()
        assert planes["labels"].isfinite().all()
        assert silent(network) == []

    @torch.no_grad()
    def test_bytes_are_the_same_image_as_fractions(self, network):
        image = torch.randint(256, (1, 3, 40, 64), dtype=torch.uint8)
        network.eval()
        torch.testing.assert_close(network(image)["labels"], network(image / 255)["labels"])

    @torch.no_grad()
    def test_channels_last_gives_the_same_planes(self, network):
        image = torch.rand(2, 3, 40, 64)
        expected = network.eval()(image)["labels"]
        planes = network.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))["labels"]
        network.to(memory_format=torch.contiguous_format)
        assert distance(planes, expected) < 1e-4

    @torch.no_grad()
    def test_a_state_dict_and_a_copy_reproduce_the_planes(self, network):
        image = torch.rand(1, 3, 40, 64)
        expected = network.eval()(image)["labels"]
        twin = copy.deepcopy(network)
        assert torch.equal(twin(image)["labels"], expected)
        for value in itertools.chain(twin.parameters(), twin.buffers()):
            value.zero_()
        assert not torch.equal(twin(image)["labels"], expected)
        twin.load_state_dict(network.state_dict())
        assert torch.equal(twin(image)["labels"], expected)

    def test_an_exported_network_gives_the_same_planes(self, network):
        image = torch.rand(1, 3, 45, 64)
        exported = torch.export.export(network.eval(), (image,)).module()
        torch.testing.assert_close(exported(image)["labels"], network(image)["labels"], rtol=1e-4, atol=1e-4)


# one a family: a compilation takes seconds
COMPILED = ("resnet18", "vgg11 conv", "fcn vgg11", "deeplab vgg11", "dilated vgg11", "unet", "unet unpadded",
            "fc-densenet", "fc-densenet unpadded", "frrn", "gridnet", "fabric", "segnet basic",
            "squeezenet1_1", "convnext_tiny", "timm resnet", "timm vit")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_network_trains_alike(name):
    trains_alike_compiled(whole(name), (torch.rand(2, 3, 45, 64),), lambda planes: planes["labels"])


def trains_alike_compiled(module: nn.Module, inputs: tuple[object, ...], chosen, backend: str = "aot_eager") -> None:
    """The same output and gradients in training; what is random is left out."""
    module.train()
    for part in module.modules():
        if "drop" in type(part).__name__.lower() or "stochastic" in type(part).__name__.lower():
            part.eval()
    state = copy.deepcopy(module.state_dict())
    results = []
    torch.compiler.reset()
    for run in (module, torch.compile(module, backend=backend)):
        module.load_state_dict(state)
        module.zero_grad()
        output = chosen(run(*inputs))
        output.square().mean().backward()
        results.append((output.detach(), {name: p.grad.clone() for name, p in module.named_parameters()}))
    module.load_state_dict(state)
    (expected, gradients), (output, found) = results
    assert distance(output, expected) < 1e-3
    scale = max(g.abs().max() for g in gradients.values())
    assert max((found[name] - g).abs().max() for name, g in gradients.items()) < 1e-3 * scale
    module.zero_grad()


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("name", ENCODERS)
def test_any_number_of_channels_goes_in(name, channels):
    with torch.device("meta"):  # sizes alone; the first convolution's weights are tested with each encoder
        decoder = DECODERS[READERS.get(name, "FCN-32s")]
        net = DenseNetwork(ENCODERS[name](in_channels=channels), decoder, {"labels": 2}).eval()
        assert net(torch.rand(1, channels, 40, 56))["labels"].shape == (1, 2, 40, 56)
    with pytest.raises(ConfigurationError, match=f"built for {channels} channels, the image has 3"):
        net(torch.rand(1, 3, 40, 56))


@pytest.mark.parametrize("name", ONE_MAP)
def test_an_encoder_of_one_map_has_none_for_an_auxiliary_decoder(name):
    with torch.device("meta"), pytest.raises(ConfigurationError, match=r"yields 1 maps.*[Ll]eave `auxiliary` out"):
        DenseNetwork(ENCODERS[name](), DECODERS["pointwise"], {"labels": 2}, auxiliary=DECODERS["pointwise"])


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in (*ONE_MAP, *PATCHES)])
def test_the_auxiliary_decoder_reads_all_maps_but_the_coarsest_in_training_only(name):
    decoder = DECODERS[READERS.get(name, "FCN-32s")]
    auxiliary = DECODERS["tiramisu" if name == "fc-densenet unpadded" else "FCN-32s"]
    with torch.device("meta"):
        net = DenseNetwork(ENCODERS[name](), decoder, {"labels": 2, "depth": 1}, auxiliary=auxiliary)
        sizes = {key: planes.shape for key, planes in net.train()(torch.rand(2, 3, 40, 56)).items()}
        assert set(net.eval().planes(torch.rand(2, 3, 40, 56))) == {"labels", "depth"}
    assert net.auxiliary_decoders[0]["labels"].spec == net.encoder.spec.without_coarsest(1)
    heads = ["", "/auxiliary", *(f"/exit{k + 1}" for k in range(net.exits - 1))]
    channels = {name + head: count for name, count in (("labels", 2), ("depth", 1)) for head in heads}
    assert sizes == {key: (2, count, 40, 56) for key, count in channels.items()}


@pytest.mark.parametrize("name", DECODERS)
class TestEveryDecoder:
    def test_a_whole_network_of_several_tasks_reaches_every_parameter(self, name):
        net = randomise_zeros(DenseNetwork(ENCODERS["resnet18"](), DECODERS[name], {"labels": 5, "depth": 1})).train()
        planes = net(torch.rand(1, 3, 33, 47))
        assert {key: tuple(value.shape) for key, value in planes.items()} == {
            "labels": (1, 5, 33, 47),
            "depth": (1, 1, 33, 47),
        }
        sum((value * torch.rand_like(value)).sum() for value in planes.values()).backward()
        unread = "encoder." if name in READ_THE_FINEST_ALONE else "none"
        assert [key for key in silent(net) if not key.startswith(unread)] == []

    def test_a_shared_decoder_splits_its_planes_between_the_tasks(self, name):
        with torch.device("meta"):
            net = DenseNetwork(ENCODERS["resnet18"](), DECODERS[name], {"labels": 5, "depth": 1}, share_decoder=True)
            planes = net.eval()(torch.rand(1, 3, 40, 40))
        assert {key: value.shape[1] for key, value in planes.items()} == {"labels": 5, "depth": 1}
        assert list(net.decoders) == ["shared"]

    @torch.no_grad()
    def test_a_copy_is_a_decoder_of_its_own(self, name):
        decoder, maps = decoder_and_maps(name)
        expected = decoder.eval()(maps)
        twin = copy.deepcopy(decoder)
        assert torch.equal(twin(maps), expected)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(decoder(maps), expected)

    def test_an_exported_decoder_gives_the_same_planes(self, name):
        decoder, maps = decoder_and_maps(name)
        exported = torch.export.export(decoder.eval(), (maps,)).module()
        torch.testing.assert_close(exported(maps), decoder(maps), rtol=1e-4, atol=1e-4)

    def test_a_compiled_decoder_trains_alike(self, name):
        decoder, maps = decoder_and_maps(name)
        trains_alike_compiled(decoder, (maps,), lambda planes: planes)


def decoder_and_maps(name: str) -> tuple[nn.Module, list[Tensor]]:
    maps = [torch.rand(2, channels, 64 // s, 96 // s) for channels, s in zip(SPEC.channels, SPEC.strides, strict=True)]
    return randomise_zeros(DECODERS[name](SPEC, 3)), maps


@pytest.mark.parametrize("name", sorted(set(decoders.__all__) - {"Decoder", "DecoderFactory"}))
def test_every_decoder_has_dropout_and_a_place_in_the_contract(name):
    kind = getattr(decoders, name)
    assert "dropout" in inspect.signature(kind).parameters
    assert kind in {part.func if isinstance(part, partial) else type(part(SPEC, 3)) for part in DECODERS.values()}


@pytest.mark.parametrize("name", sorted(set(encoders.__all__) - {"Encoder", "LoadReport"}))
def test_every_encoder_has_a_place_in_the_contract(name):
    built = {part.func if inspect.isclass(part.func) else type(part()) for part in ENCODERS.values()}
    assert getattr(encoders, name) in built


@pytest.mark.slow
def test_inductor_compiles_a_network_that_trains_alike():
    net = DenseNetwork(ENCODERS["segnet basic"](), DECODERS["U-Net"], {"labels": 3})
    trains_alike_compiled(net, (torch.rand(2, 3, 45, 64),), lambda planes: planes["labels"], backend="inductor")


def test_an_exported_network_has_no_auxiliary_decoder():
    encoder, decoder = ENCODERS["resnet18"](), DECODERS["FCN-8s"]
    torch.manual_seed(0)
    network = DenseNetwork(encoder, decoder, {"labels": 3}, auxiliary=decoders.PointwiseDecoder, auxiliary_depth=2)
    exported = torch.export.export(network.eval(), (torch.rand(1, 3, 64, 64),))
    assert set(exported.module()(torch.rand(1, 3, 64, 64))) == {"labels"}
    assert not [node for node in exported.graph.nodes if "auxiliary" in str(node.meta.get("nn_module_stack", ""))]
    assert len(network.train().planes(torch.rand(2, 3, 64, 64))) == 3
