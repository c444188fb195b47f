"""The decoders that are published with transformers."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densepred.blocks import ConvNormAct
from densepred.decoders.dpt import DPTDecoder
from densepred.decoders.segformer import SegFormerDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.timm import TimmEncoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.tasks.depth import Depth
from densepred.tasks.segmentation import Segmentation

PLAIN = FeatureSpec((6, 6, 6, 6), (16, 16, 16, 16))
SPECS = {
    "plain": PLAIN,
    "plain, patches of 14": FeatureSpec((6, 6, 6, 6), (14, 14, 14, 14)),
    "plain, three maps": FeatureSpec((6, 6, 6), (16, 16, 16)),
    "hierarchical": FeatureSpec((3, 4, 5, 6), (4, 8, 16, 32)),
    "with finer maps": FeatureSpec((2, 3, 4, 5, 6), (1, 2, 4, 8, 16)),
    "dilated": FeatureSpec((2, 3, 4, 5, 6), (2, 4, 8, 8, 8)),
    "one map": FeatureSpec((6,), (8,)),
    "one map of the image's size": FeatureSpec((6,), (1,)),
}
# stride of the planes: half the pyramid's finest (segmentation), a quarter (depth), never past the image
DPT_STRIDES = {
    "plain": (2, 1),
    "plain, patches of 14": (1.75, 1.75),
    "plain, three maps": (4, 2),
    "hierarchical": (2, 1),
    "with finer maps": (2, 1),
    "dilated": (2, 1),
    "one map": (4, 2),
    "one map of the image's size": (1, 1),
}


def maps(spec: FeatureSpec, height: int, width: int, batch: int = 1) -> list[torch.Tensor]:
    return [torch.rand(batch, c, height // s, width // s) for c, s in zip(*spec[:2], strict=True)]


def randomised(module: nn.Module) -> nn.Module:
    for key, value in module.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.normal_(std=0.2)
    return module.eval()


def transplant(ours: nn.Module, theirs: nn.Module) -> None:
    """Weights by order: both hold the same layers one after the other."""
    state = list(theirs.state_dict().values())
    own = ours.state_dict()
    assert [tuple(v.squeeze().shape) for v in own.values()] == [tuple(v.squeeze().shape) for v in state]
    ours.load_state_dict({key: value.reshape(own[key].shape) for key, value in zip(own, state, strict=True)})


# shapes and gradients


@pytest.mark.parametrize("head", ["segmentation", "depth"])
@pytest.mark.parametrize("kind", SPECS)
def test_dpt_planes_have_the_promised_stride_and_reach_every_parameter(kind, head):
    spec = SPECS[kind]
    decoder = DPTDecoder(spec, 3, width=8, head=head).train()
    height, width = 3 * spec.strides[-1] * 2, 5 * spec.strides[-1] * 2
    planes = decoder(maps(spec, height, width))
    stride = DPT_STRIDES[kind][head == "depth"]
    assert planes.shape == (1, 3, height / stride, width / stride)
    (planes * torch.rand_like(planes)).sum().backward()
    assert [key for key, value in decoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("kind", SPECS)
def test_segformer_planes_have_the_finest_stride_read_and_reach_every_parameter(kind):
    spec = SPECS[kind]
    decoder = SegFormerDecoder(spec, 3, width=8).train()
    planes = decoder(maps(spec, 112, 224))
    stride = next((s for s in spec.strides if s >= 4), spec.strides[-1])
    assert planes.shape == (1, 3, 112 // stride, 224 // stride)
    (planes * torch.rand_like(planes)).sum().backward()
    assert [key for key, value in decoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("decoder", [DPTDecoder, SegFormerDecoder])
@pytest.mark.parametrize("norm", ["group", "layer", "instance", "weight", "none"])
@pytest.mark.parametrize("activation", ["gelu", "maxout"])
def test_norms_and_activations_are_options(decoder, norm, activation):
    spec = SPECS["hierarchical"]
    built = decoder(spec, 3, width=8, norm=norm, activation=activation)
    assert not any(isinstance(layer, nn.BatchNorm2d | nn.ReLU) for layer in built.modules())
    planes = built(maps(spec, 64, 96))
    planes.sum().backward()
    assert planes.isfinite().all()
    assert [key for key, value in built.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("build", [DPTDecoder, SegFormerDecoder])
def test_dropout_acts_in_training_alone(build):
    spec = SPECS["hierarchical"]
    decoder = build(spec, 3, width=8, dropout=1.0, norm="none")
    score = decoder.head.score if build is DPTDecoder else decoder.score
    features = maps(spec, 64, 64)
    dropped = decoder.train()(features)
    assert torch.equal(dropped, score.bias.view(1, -1, 1, 1).expand_as(dropped))
    assert decoder.eval()(features).std((-2, -1)).min() > 0


# published numbers and peers


@pytest.mark.parametrize(
    ("channels", "width", "million"),
    [((32, 64, 160, 256), 256, 0.4), ((64, 128, 320, 512), 256, 0.6), ((64, 128, 320, 512), 768, 3.3)],
    ids=["B0", "B1", "B2 to B5"],
)
def test_segformer_has_the_published_number_of_parameters(channels, width, million):
    """Table 1 of the paper, 150 classes of ADE20K."""
    with torch.device("meta"):
        decoder = SegFormerDecoder(FeatureSpec(channels, (4, 8, 16, 32)), 150, width=width)
    assert round(sum(p.numel() for p in decoder.parameters()) / 1e6, 1) == million


@torch.no_grad()
def test_segformers_first_cross_entropy_is_that_of_knowing_nothing():
    spec = FeatureSpec((64, 128, 320, 512), (4, 8, 16, 32))
    planes = SegFormerDecoder(spec, 21)([torch.randn_like(f) for f in maps(spec, 128, 128, batch=2)])
    loss = F.cross_entropy(planes, torch.randint(21, (2, *planes.shape[-2:])))
    assert loss.item() == pytest.approx(math.log(21), abs=0.03)


@torch.no_grad()
def test_segformer_equals_that_of_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch.decoders.segformer.decoder")
    spec = SPECS["hierarchical"]
    theirs = randomised(smp.SegformerDecoder([3, 0, *spec.channels], segmentation_channels=8))
    ours = SegFormerDecoder(spec, 2, width=8).eval()
    for linear, stage in zip(ours.linears, reversed(theirs.mlp_stage), strict=True):
        transplant(linear, stage.linear)
    transplant(ours.fuse, theirs.fuse_stage)
    features = maps(spec, 64, 96)
    expected = theirs([torch.rand(1, 3, 64, 96), torch.empty(1, 0, 32, 48), *features])
    torch.testing.assert_close(ours(features), ours.score(expected), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dpt_equals_that_of_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch.decoders.dpt.decoder")
    widths = (5, 6, 7, 8)
    theirs = smp.DPTDecoder(PLAIN.channels, PLAIN.strides, False, "ignore", widths, fusion_channels=8)
    head = smp.DPTSegmentationHead(8, 3)
    randomised(theirs)
    randomised(head)
    # their first unit on the coarsest map, which neither the paper's release nor ours has: made the identity
    extra = theirs.fusion_blocks[0].residual_conv_block1.batch_norm_2
    extra.weight.zero_()
    extra.bias.zero_()
    extra.running_mean.zero_()
    ours = DPTDecoder(PLAIN, 3, width=8, reassemble_widths=widths, align_corners=True).eval()
    for i, block in enumerate(theirs.reassemble_blocks):
        transplant(ours.reassemble[i][0], block.project_to_out_channel)
        transplant(ours.reassemble[i][1], block.upsample)
        transplant(ours.entries[i], block.project_to_feature_dim)
    for i, block in enumerate(reversed(theirs.fusion_blocks)):
        if i < 3:
            transplant(ours.fusions[i].before, block.residual_conv_block1)
        transplant(ours.fusions[i].after, block.residual_conv_block2)
        transplant(ours.fusions[i].project, block.project)
    transplant(ours.head.first, nn.Sequential(head.head[0], head.head[1]))
    transplant(ours.head.score, head.head[4])
    features = maps(PLAIN, 64, 96)
    expected = head(theirs(features, [None] * 4))
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(features), expected, rtol=1e-4, atol=1e-4)


# where cells lie


@torch.no_grad()
def test_dpt_moves_with_its_maps():
    decoder = randomised(DPTDecoder(PLAIN, 1, width=4))
    wide = torch.rand(1, 6, 8, 44)
    here = decoder([wide[..., :40]] * 4)
    moved = decoder([wide[..., 2:42]] * 4)  # by a cell of the coarsest level, 32 pixels, 16 planes of stride 2
    inner = slice(112, -112)
    assert here[..., inner].std() > 0
    torch.testing.assert_close(moved[..., inner], here.roll(-16, -1)[..., inner])


@torch.no_grad()
def test_dpt_keeps_cells_in_place_where_their_number_is_odd():
    decoder = randomised(DPTDecoder(PLAIN, 1, width=4))
    wide = torch.rand(1, 6, 8, 40)
    even, odd = decoder([wide] * 4), decoder([wide[..., :39]] * 4)
    assert odd.shape[-1] == 39 * 8
    torch.testing.assert_close(odd[..., :160], even[..., :160])


@torch.no_grad()
def test_a_residual_unit_leaves_what_it_adds_to_alone():
    decoder = DPTDecoder(PLAIN, 1, width=4)
    unit = decoder.fusions[0].after
    for layer in unit.modules():
        if isinstance(layer, ConvNormAct):
            nn.init.zeros_(layer[0].weight)
    feature = torch.randn(1, 4, 5, 5)
    assert torch.equal(unit.eval()(feature), feature)


# with encoders


@pytest.mark.parametrize("decoder", [DPTDecoder, SegFormerDecoder])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "resnet18", "resnet18 OS8"])
def test_networks_copy_export_and_run_in_bfloat16(name, decoder):
    if name.startswith("vit"):
        pytest.importorskip("timm")
        encoder = TimmEncoder(name)
    else:
        encoder = ResNetEncoder("resnet18", output_stride=8 if "OS8" in name else 32)
    network = DenseNetwork(encoder, lambda spec, n: decoder(spec, n, width=8), {"labels": 3}).eval()
    image = torch.rand(1, 3, 33, 47)
    with torch.no_grad():
        expected = network(image)["labels"]
        assert expected.shape == (1, 3, 33, 47)
        assert torch.equal(copy.deepcopy(network)(image)["labels"], expected)
        exported = torch.export.export(network, (image,)).module()
        torch.testing.assert_close(exported(image)["labels"], expected)
        last = network.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last["labels"], expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(image)["labels"]
    scale = expected.abs().max()
    assert (half.float() - expected).abs().max() < 0.1 * scale


@pytest.mark.parametrize("decoder", [DPTDecoder, SegFormerDecoder])
def test_labels_and_depth_learn_from_patches_of_14(decoder):
    pytest.importorskip("timm")
    encoder = TimmEncoder("vit_small_patch14_reg4_dinov2", out_indices=(0, 1, 2, 3))
    module = DensePredictor(encoder, decoder, [Segmentation(3), Depth()])
    batch = {
        "image": torch.rand(1, 3, 45, 50),
        "segmentation": torch.randint(0, 3, (1, 45, 50), dtype=torch.uint8),
        "depth": torch.rand(1, 1, 45, 50) + 1,
    }
    planes = module.network.planes(batch["image"])
    losses = [task.loss_from_planes(planes[task.name], batch) for task in module.tasks]
    torch.stack(losses).sum().backward()
    assert all(loss.isfinite() for loss in losses)
    # ln 3 on average, from scores that know nothing yet
    assert F.relu(losses[0] - 2.5) == 0


# errors


def test_dpt_says_what_does_not_go_together():
    with pytest.raises(ConfigurationError, match=r"head is 'labels'\. Expected one of: segmentation, depth"):
        DPTDecoder(PLAIN, 3, head="labels")
    with pytest.raises(ConfigurationError, match="reassemble_widths has 3 numbers for 4 maps"):
        DPTDecoder(PLAIN, 3, reassemble_widths=(8, 8, 8))
    with pytest.raises(ConfigurationError, match=r"is for maps of one stride; these have strides \(4, 8, 16, 32\)"):
        DPTDecoder(SPECS["hierarchical"], 3, reassemble_widths=(8, 8, 8, 8))
    with pytest.raises(ConfigurationError, match=r"from maps of stride 14 they have 1.75. Set align_corners to false"):
        DPTDecoder(SPECS["plain, patches of 14"], 3, align_corners=True)
    with pytest.raises(ConfigurationError, match="finest_stride is 0; expected 1 or more"):
        SegFormerDecoder(PLAIN, 3, finest_stride=0)
