"""Stages, receptive fields and planned memory against closed forms, published figures and a real step."""

import copy
import inspect
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import densepred.balance
import densepred.data
import densepred.decoders
import densepred.encoders
import densepred.losses
import densepred.refine
import densepred.tasks
from densepred.anatomy.memory import step_memory
from densepred.anatomy.receptive_field import effective_receptive_fields, theoretical_receptive_fields
from densepred.anatomy.stages import trace
from densepred.cli import main
from densepred.commands.list import KINDS, parts
from densepred.decoders.deeplab import DeepLabV3Decoder
from densepred.decoders.fcn import FCNDecoder, TorchvisionFCNDecoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.base import Encoder
from densepred.encoders.fcdensenet import FCDenseNetEncoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.features import FeatureSpec
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.sample import Kind
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation

NETWORKS = {
    "U-Net": lambda: DenseNetwork(ResNetEncoder("resnet18"), UNetDecoder, {"labels": 5, "depth": 1}),
    "DeepLab": lambda: DenseNetwork(
        ResNetEncoder("resnet50", output_stride=8),
        DeepLabV3Decoder,
        {"labels": 5},
        auxiliary=TorchvisionFCNDecoder,
        auxiliary_depth=2,
    ),
    "FCN": lambda: DenseNetwork(VGGEncoder("vgg11", maps="pool"), FCNDecoder, {"labels": 5}),
}


class OneConvolution(Encoder):
    """A single 3x3 convolution."""

    def __init__(self, kernel_size: int = 3) -> None:
        super().__init__(1, mean=[0.0], std=[1.0])
        self.convolution = nn.Conv2d(1, 4, kernel_size, padding=kernel_size // 2)
        self.spec = FeatureSpec((4,), (1,))

    def forward(self, image):
        return [self.convolution(self.normalise(image))]


# ---------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stages_hold_every_parameter_and_every_operation_once(name):
    with torch.device("meta"):
        network = NETWORKS[name]()
        image = torch.zeros(2, 3, 64, 96)
        stages = trace(network.train(), image)
        with FlopCounterMode(display=False) as counter:
            network(image)
    assert sum(stage.parameters for stage in stages) == sum(p.numel() for p in network.parameters())
    assert 2 * sum(stage.macs for stage in stages) == counter.get_total_flops()


def test_an_encoders_stages_are_its_maps_with_what_made_them():
    with torch.device("meta"):
        network = DenseNetwork(ResNetEncoder("resnet18"), PointwiseDecoder, {"depth": 1})
        stages = trace(network, torch.zeros(1, 3, 64, 64))[:5]
    encoder = network.encoder
    layers = [[encoder.conv1, encoder.bn1], encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
    own = [sum(p.numel() for part in (layer if isinstance(layer, list) else [layer]) for p in part.parameters())
           for layer in layers]  # fmt: skip
    assert [stage.parameters for stage in stages] == own
    assert [tuple(stage.tensor.shape[1:]) for stage in stages] == [
        (64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)
    ]  # fmt: skip
    assert stages[0].macs == 3 * 7 * 7 * 64 * 32 * 32


@pytest.mark.parametrize("recompute", [False, True])
def test_a_map_that_is_put_together_of_others_ends_before_the_module_that_reads_it(recompute):
    with torch.device("meta"):
        encoder = FCDenseNetEncoder(layers=(2, 3), bottleneck=1, growth=4, first=8, recompute=recompute)
        stages = trace(DenseNetwork(encoder, UNetDecoder, {"depth": 1}).train(), torch.zeros(1, 3, 32, 32))[:3]
    own = [[encoder.first, encoder.blocks[0]], [encoder.downs[0], encoder.blocks[1]],
           [encoder.downs[1], encoder.bottleneck]]  # fmt: skip
    assert [stage.parameters for stage in stages] == [sum(p.numel() for m in parts for p in m.parameters())
                                                      for parts in own]  # fmt: skip
    assert all(stage.macs and stage.saved_bytes for stage in stages)


def test_a_decoder_has_a_stage_for_each_size_it_works_at_and_its_planes_are_the_last():
    with torch.device("meta"):
        stages = trace(NETWORKS["DeepLab"]().train(), torch.zeros(2, 3, 64, 64))
    decoder = [stage for stage in stages if stage.name == "decoder labels"]
    assert [tuple(stage.tensor.shape[1:]) for stage in decoder] == [(256, 1, 1), (5, 8, 8)]
    assert sum(stage.name == "auxiliary labels" for stage in stages) == 2


# ---------------------------------------------------------------------------------------------- receptive fields


@pytest.mark.parametrize(
    ("encoder", "published"),
    [
        (partial(VGGEncoder, "vgg16", maps="pool"), [6, 16, 44, 100, 212]),
        (partial(ResNetEncoder, "resnet18"), [7, 43, 99, 211, 435]),
        (partial(ResNetEncoder, "resnet50"), [7, 35, 91, 267, 427]),
    ],
)
def test_receptive_fields_are_the_published_ones(encoder, published):
    network = DenseNetwork(encoder(), PointwiseDecoder, {"depth": 1})
    weights = copy.deepcopy(network.state_dict())
    assert theoretical_receptive_fields(network)[: len(published)] == published
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


def test_dilation_widens_the_receptive_field_and_global_pooling_sees_the_image():
    network = DenseNetwork(ResNetEncoder("resnet18", output_stride=8), DeepLabV3Decoder, {"labels": 2})
    *encoder, pooled, planes = theoretical_receptive_fields(network)
    assert encoder == [7, 43, 99, 211, 435]
    assert (pooled, planes) == (None, None)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)])
def test_statistics_over_an_image_see_the_whole_image(norm):
    class Normed(OneConvolution):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, image):
            return [self.norm(features) for features in super().forward(image)]

    network = DenseNetwork(Normed(), PointwiseDecoder, {"depth": 1})
    assert theoretical_receptive_fields(network) == [None, None]


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_the_effective_field_of_equal_weights_is_the_kernel_and_of_a_single_tap_one_pixel(kernel_size):
    network = DenseNetwork(OneConvolution(kernel_size), PointwiseDecoder, {"depth": 1})
    weight = network.encoder.convolution.weight.data
    image = torch.rand(2, 1, 40, 40)
    weight.fill_(0.1)
    assert effective_receptive_fields(network, image)[0] == kernel_size
    weight.zero_()[..., kernel_size // 2, kernel_size // 2] = 1
    assert effective_receptive_fields(network, image)[0] == 1
    weight.zero_()
    assert effective_receptive_fields(network, image)[0] == 0
    assert theoretical_receptive_fields(network) == [kernel_size, kernel_size]


def test_a_deep_network_looks_at_less_than_it_sees():
    network = NETWORKS["U-Net"]()
    pairs = zip(
        theoretical_receptive_fields(network), effective_receptive_fields(network, torch.randn(1, 3, 256, 256)),
        strict=True,
    )  # fmt: skip
    assert all(0 < looks <= sees for sees, looks in list(pairs)[:10])


# ---------------------------------------------------------------------------------------------- memory


def module(**options) -> DensePredictor:
    return DensePredictor(ResNetEncoder("resnet18"), UNetDecoder, [Segmentation(5), Depth(), Normals()], **options)


def test_the_planned_activations_are_what_a_real_step_allocates():
    with torch.device("meta"):
        planned = step_memory(module(), 2, (96, 128))
    real = module().train()
    batch = {
        "image": torch.zeros(2, 3, 96, 128, dtype=torch.uint8),
        "segmentation": torch.zeros(2, 96, 128, dtype=torch.uint8),
        "depth": torch.ones(2, 1, 96, 128),
        "normals": torch.ones(2, 3, 96, 128),
    }
    assert real.tasks[0].kind is Kind.LABEL
    with torch.profiler.profile(profile_memory=True) as profile:
        planes = real.network.planes(batch["image"])
        loss = sum(task.loss_from_planes(planes[task.name], batch) for task in real.tasks)
    allocated = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    assert loss.isfinite()
    # what is still referenced here besides: the planes, a few counters
    assert planned.activations == pytest.approx(allocated, rel=0.1)
    assert planned.batch == sum(tensor.nbytes for tensor in batch.values())


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [(torch.optim.SGD, 0), (partial(torch.optim.SGD, momentum=0.9), 1), (torch.optim.AdamW, 2)],
)
def test_the_optimizers_state_is_planned(optimizer, numbers):
    with torch.device("meta"):
        planned = step_memory(module(optimizer=partial(optimizer, lr=0.1)), 1, (64, 64))
    assert planned.optimizer == numbers * planned.gradients
    assert planned.gradients == 4 * sum(p.numel() for p in module().parameters())
    assert planned.total == sum(planned)


# ---------------------------------------------------------------------------------------------- commands


FACES = {
    "encoders": densepred.encoders, "decoders": densepred.decoders, "tasks": densepred.tasks,
    "losses": densepred.losses, "data": densepred.data, "balance": densepred.balance, "refine": densepred.refine,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_list_names_every_part_that_can_be_imported_with_a_line(kind, capsys):
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    base = getattr(FACES[kind], KINDS[kind], None)
    public = {name: getattr(FACES[kind], name) for name in FACES[kind].__all__}
    expected = {
        name
        for name, value in public.items()
        if isinstance(value, type) and issubclass(value, base) and value != base and not inspect.isabstract(value)
    }
    assert {line.split()[0] for line in lines} == expected
    assert all(part.line.endswith(".") for part in parts(kind))


def test_list_shows_a_class_with_its_options_and_the_nearest_to_a_misspelt_one(capsys):
    assert main(["list", "UNetDecoder"]) == 0
    shown = capsys.readouterr().out
    assert "dropout: float = 0.0" in shown
    assert "Reference:" in shown
    assert main(["list", "UNetDecodr"]) == 1
    assert "such as UNetDecoder" in capsys.readouterr().err


CONFIG = """
model:
  class_path: DensePredictor
  init_args:
    encoder: {class_path: VGGEncoder, init_args: {name: vgg16, weights: /nowhere.pth, maps: pool}}
    decoder: {class_path: FCNDecoder}
    tasks: [{class_path: Segmentation, init_args: {classes: 21}}]
data: {class_path: X, init_args: {batch_size: 3, train_transforms: [{class_path: Y, init_args: {size: [64, 96]}}]}}
"""


def test_describe_prints_a_line_for_each_stage_and_the_memory_of_a_step(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(CONFIG)
    assert main(["describe", str(tmp_path / "run.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "images of 64 x 96, 3 in a batch" in shown
    (second,) = (line.split() for line in shown.splitlines() if line.startswith("encoder 2"))
    macs = (64 * 9 * 128 + 128 * 9 * 128) * 32 * 48 / 1e9
    assert second[2:8] == ["16", "x", "24", "128", "221,440", f"{macs:.2f}"]
    assert second[9] == "16"
    assert "weights" in shown
    assert f"  {'decoder segmentation':<32}    0.000     0.000" in shown  # of checkerboards: bilinear upsampling


def test_describe_takes_sizes_and_options_from_the_command_line(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(CONFIG)
    path = str(tmp_path / "run.yaml")
    assert main(["describe", path, "--quick", "--size", "33", "47", "--model.encoder.name", "vgg11"]) == 0
    shown = capsys.readouterr().out
    assert "images of 33 x 47" in shown
    assert "32 x 32" in shown  # padded to 64 x 64, seen after the first pooling
    scores = 2 * (512 * 21 + 21) + 256 * 21 + 21
    assert f"{9_220_480 + scores:,}" in shown  # VGG-11 has 9,220,480 without its classifier
    assert "sees" not in shown
    assert "checkerboard" not in shown


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no file"), ("trainer: {}", "no `model`"), ("a: [", "not YAML")]
)
def test_describe_says_what_is_wrong_with_its_file(tmp_path, capsys, content, message):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["describe", str(path)]) == 1
    assert message in capsys.readouterr().err
