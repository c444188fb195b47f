"""Wang, Fouhey and Gupta's networks: counts, sizes, order of outputs, windows, fusion, the directions of rooms."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densepred.decoders.patches import PatchDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.base import IMAGENET_MEAN
from densepred.encoders.fusion import FusionEncoder, NormalsPrior
from densepred.encoders.wang import WangGlobalEncoder, WangLocalEncoder
from densepred.errors import ConfigurationError, WeightsError
from densepred.features import FeatureSpec
from densepred.manhattan import layout_normals, normal_of_plane, rectified, room_directions
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.starting_weights import without_starting_weights
from densepred.tasks.codebook import CodebookNormals
from densepred.tasks.segmentation import Segmentation

FEW = (4, 6, 8, 4)
GLOBAL = partial(PatchDecoder, cells=20, single=(300,))
LOCAL = partial(PatchDecoder, cells=13, hidden=4096, single=(37,))


def network(encoder, decoder, **planes) -> DenseNetwork:
    return DenseNetwork(encoder, decoder, planes)


# ---------------------------------------------------------------------------------------------- the published networks


@pytest.mark.parametrize(
    ("encoder", "decoder", "planes", "count"),
    [
        (WangGlobalEncoder, GLOBAL, {"normals": 20, "layout": 300}, 306_869_932),
        (WangLocalEncoder, LOCAL, {"normals": 40, "edges": 37}, 330_735_821),
        (partial(WangLocalEncoder, 18), LOCAL, {"normals": 40}, 179_609_192),
        (partial(WangLocalEncoder, 9), LOCAL, {"normals": 40}, 179_594_792),
    ],
    ids=["global", "local", "fusion of 18 channels", "fusion of 9 channels"],
)
def test_each_network_has_the_published_parameters(encoder, decoder, planes, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in network(encoder(), decoder, **planes).parameters()) == count


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        whole, windows = WangGlobalEncoder(), WangLocalEncoder()
        sizes = []
        for layer in whole.trunk:
            layer.register_forward_hook(lambda layer, _, out: sizes.append((type(layer).__name__, out.shape[-1])))
        assert whole(torch.rand(1, 3, 480, 640))[0].shape == (1, 36864, 1, 1)
        assert windows(torch.rand(1, 3, 195, 260))[0].shape == (1, 36864, 15, 20)  # 300 windows
        values = [decoder.score.out_channels for decoder in (
            GLOBAL(whole.spec, 20), GLOBAL(whole.spec, 300), LOCAL(windows.spec, 40), LOCAL(windows.spec, 37),
        )]  # fmt: skip
        net = network(windows, LOCAL, normals=40, edges=37)
        planes = {name: tuple(value.shape[1:]) for name, value in net.planes(torch.rand(1, 3, 195, 260)).items()}
    assert values == [8000, 300, 6760, 37]
    assert planes == {"normals": (40, 195, 260), "edges": (37, 15, 20)}
    assert [size for name, size in sizes if name == "Conv2d"] == [51, 25, 12, 12]
    assert [size for name, size in sizes if name == "MaxPool2d"] == [25, 12]
    assert [name for name, _ in sizes] == [
        *("Conv2d", "ReLU", "MaxPool2d", "LocalResponseNorm") * 2, *("Conv2d", "ReLU") * 2,
    ]  # fmt: skip


@pytest.mark.parametrize("share", [1, 4])
def test_weights_start_as_in_the_authors_code_and_of_narrow_layers_so_that_sums_are_as_large(share):
    torch.manual_seed(0)
    encoder = WangLocalEncoder(widths=tuple(width // share for width in (64, 192, 384, 256)))
    convolutions = [layer for layer in encoder.trunk if isinstance(layer, torch.nn.Conv2d)]
    for index, (layer, bias) in enumerate(zip(convolutions, (1.0, 0.0, 1.0, 1.0), strict=True)):
        expected = 0.01 * (share**0.5 if index else 1)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)
        assert (layer.bias == bias).all()
    decoder = PatchDecoder(FeatureSpec((36_864 // share**2,), (13,)), 4, cells=3, hidden=4096 // share**2)
    assert decoder.hidden[0].weight.std().item() == pytest.approx(0.005 * share, rel=0.02)
    assert (decoder.hidden[0].bias == 0.1).all()
    assert decoder.score.weight.std().item() == pytest.approx(0.01 * share, rel=0.02)
    assert not decoder.score.bias.any()
    whole = PatchDecoder(FeatureSpec((36_864 // share**2,), (13,)), 4, cells=3)
    assert whole.score.weight.std().item() == pytest.approx(0.01 * share, rel=0.02)


def test_the_trunk_is_the_published_chain_of_layers():
    """Written down once more; the local response normalisation from its definition."""
    torch.manual_seed(0)
    trunk = WangGlobalEncoder(widths=FEW).trunk.double()
    state, image = trunk.state_dict(), torch.rand(2, 3, 55, 55, dtype=torch.float64) * 255

    def normalised(x):
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
        return x / (1 + 1e-4 / 5 * squares) ** 0.75

    x = image
    for i, (layer, padding, groups) in enumerate(((0, 0, 1), (4, 1, 1), (8, 1, 2), (10, 1, 2))):
        expected = F.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"], padding=padding, groups=groups).relu()
        x = normalised(F.max_pool2d(expected, 3, 2, ceil_mode=True)) if i < 2 else expected
    torch.testing.assert_close(trunk(image)[:, :, 0, 0], x.flatten(1))


def test_colours_enter_in_bytes_less_their_mean():
    encoder = WangLocalEncoder(widths=FEW)
    image = torch.randint(256, (1, 3, 20, 20), dtype=torch.uint8)
    mean = 255 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    torch.testing.assert_close(encoder.normalise(image), image - mean, atol=1e-3, rtol=0)


# ---------------------------------------------------------------------------------------------- order and windows


def test_the_values_of_a_patch_have_its_width_outermost_then_its_height_then_the_codeword():
    decoder = PatchDecoder(FeatureSpec((1,), (4,)), out_channels=3, cells=4)
    with torch.no_grad():
        decoder.score.weight.copy_(torch.arange(48.0).view(48, 1, 1, 1))
    patch = torch.tensor([[[[1.0, 1000.0]]]])
    planes = decoder([patch])[0]
    assert planes.shape == (3, 4, 8)
    for codeword in range(3):
        for row in range(4):
            for column in range(4):
                place = (column * 4 + row) * 3 + codeword
                assert planes[codeword, row, column] == place
                assert planes[codeword, row, 4 + column] == 1000 * place


@torch.no_grad()
def test_each_patch_depends_on_its_window_alone():
    """A window goes 21 pixels beyond its patch of 13; what lies further changes nothing."""
    torch.manual_seed(0)
    encoder = WangLocalEncoder(widths=FEW).double()
    image = torch.rand(1, 3, 130, 143, dtype=torch.float64)
    before = encoder(image)[0]
    image[..., 60, 70] += 1  # in windows whose patch begins at 60 - 33 .. 60 + 21, at multiples of 13
    moved = (encoder(image)[0] != before).any(1)[0]
    rows = [row for row in range(10) if 13 * row - 21 <= 60 < 13 * row + 34]
    columns = [column for column in range(11) if 13 * column - 21 <= 70 < 13 * column + 34]
    expected = torch.zeros(10, 11, dtype=torch.bool)
    expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert (moved & ~expected).sum() == 0
    assert moved[4, 5]  # its own patch


@torch.no_grad()
def test_a_window_is_seen_as_the_trunk_alone_sees_it():
    torch.manual_seed(0)
    encoder = WangLocalEncoder(widths=FEW).double()
    image = torch.rand(2, 3, 104, 117, dtype=torch.float64)
    seen = encoder(image)[0]
    for row, column in ((2, 2), (4, 5)):
        top, left = 13 * row - 21, 13 * column - 21
        window = encoder.normalise(image[..., top : top + 55, left : left + 55])
        torch.testing.assert_close(seen[:, :, row, column], encoder.trunk(window)[:, :, 0, 0])


@torch.no_grad()
def test_the_whole_image_is_seen_at_55_pixels_whatever_its_size():
    torch.manual_seed(0)
    encoder = WangGlobalEncoder(widths=FEW)
    ramp = torch.linspace(0, 1, 220).view(1, 1, 1, 220).expand(1, 3, 110, 220)
    small = F.avg_pool2d(ramp, (2, 4))
    torch.testing.assert_close(encoder(ramp)[0], encoder(small)[0], atol=0.05, rtol=0.01)
    assert encoder(torch.rand(1, 3, 20, 30))[0].shape == (1, 144 * 4, 1, 1)


@pytest.mark.parametrize("size", [(33, 47), (195, 260), (100, 64)])
def test_planes_cover_the_image(size):
    rows, columns = (-(-side // 13) for side in size)
    net = network(WangLocalEncoder(widths=FEW), partial(PatchDecoder, cells=13, hidden=8, single=(37,)), a=5, b=37)
    planes = net.planes(torch.rand(1, 3, *size))
    assert planes["a"].shape == (1, 5, 13 * rows, 13 * columns)
    assert planes["b"].shape == (1, 37, rows, columns)
    assert {value.shape[-2:] for value in net(torch.rand(1, 3, *size)).values()} == {size}
    net = network(WangGlobalEncoder(widths=FEW), GLOBAL, a=5, b=300)
    planes = net.planes(torch.rand(1, 3, *size))
    assert planes["a"].shape == (1, 5, 20, 20)
    assert planes["b"].shape == (1, 300, 1, 1)
    assert {value.shape[-2:] for value in net(torch.rand(1, 3, *size)).values()} == {size}


@pytest.mark.parametrize("encoder", [WangGlobalEncoder, WangLocalEncoder])
def test_decoders_that_go_by_strides_and_odd_widths_are_refused(encoder):
    with pytest.raises(ConfigurationError, match=r"UNetDecoder goes by strides.*Take PatchDecoder"):
        network(encoder(widths=FEW), UNetDecoder, normals=20)
    with pytest.raises(ConfigurationError, match="expected four numbers, the last three even"):
        encoder(widths=(4, 6, 7, 4))
    with pytest.raises(ConfigurationError, match="cells is 0"):
        network(encoder(widths=FEW), partial(PatchDecoder, cells=0), normals=20)


def test_normals_layout_and_loss_train_together_and_reach_every_parameter():
    torch.manual_seed(0)
    tasks = [CodebookNormals(20), Segmentation(300, name="layout")]
    module = DensePredictor(WangGlobalEncoder(widths=FEW), GLOBAL, tasks).train()
    normals = F.normalize(torch.randn(2, 3, 60, 80) - torch.tensor([0.0, 0, 3]).view(3, 1, 1), dim=1)
    layout = torch.tensor([7, 250], dtype=torch.int32).view(2, 1, 1).expand(2, 60, 80)
    batch = {"image": torch.rand(2, 3, 60, 80), "normals": normals, "layout": layout, "name": ["a", "b"]}
    module.training_step(batch, 0).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


# ---------------------------------------------------------------------------------------------- fusion


def prior(**options) -> NormalsPrior:
    return NormalsPrior(WangGlobalEncoder(widths=FEW), partial(PatchDecoder, cells=20), codebook=20, **options)


def fusion(priors, in_channels=3) -> FusionEncoder:
    return FusionEncoder(WangLocalEncoder(in_channels + 3 * len(priors), FEW), priors, in_channels)


@torch.no_grad()
def test_fusion_sees_the_image_and_the_priors_normals_as_pictures():
    torch.manual_seed(0)
    first, second = prior(), prior()
    encoder = fusion([first, second]).eval()
    image = torch.randint(256, (1, 3, 65, 91), dtype=torch.uint8)
    seen = []
    encoder.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    encoder(image)
    torch.testing.assert_close(seen[0][:, :3], image / 255)
    for i, one in enumerate((first, second)):
        normals = one(image)
        torch.testing.assert_close(normals.norm(dim=1), torch.ones(1, 65, 91))
        torch.testing.assert_close(seen[0][:, 3 + 3 * i : 6 + 3 * i], (normals + 1) / 2)


def test_priors_are_frozen_for_good_and_travel_in_the_state_dict():
    torch.manual_seed(0)
    encoder = fusion([prior()]).train()
    assert not any(name.startswith("priors") for name, _ in encoder.named_parameters())
    assert not any(module.training for one in encoder.priors for module in one.modules())
    encoder(torch.rand(1, 3, 65, 65))[0].sum().backward()
    twin = fusion([prior()])
    twin.load_state_dict(encoder.state_dict())
    image = torch.rand(1, 3, 65, 65)
    torch.testing.assert_close(twin(image), encoder(image))
    torch.testing.assert_close(copy.deepcopy(encoder)(image), encoder(image))


def test_a_prior_starts_from_the_checkpoint_of_its_own_run(tmp_path):
    torch.manual_seed(0)
    module = DensePredictor(WangGlobalEncoder(widths=FEW), partial(PatchDecoder, cells=20), [CodebookNormals(20)])
    torch.save({"state_dict": module.state_dict()}, tmp_path / "global.ckpt")
    image = torch.rand(1, 3, 60, 80)
    loaded = prior(weights=str(tmp_path / "global.ckpt"))
    torch.testing.assert_close(loaded(image), module.eval()(image)["normals"])
    with pytest.raises(WeightsError, match=r"of another network: decoders\.walls.* is not in it"):
        prior(weights=str(tmp_path / "global.ckpt"), task="walls")
    with pytest.raises(WeightsError, match="of another network: encoder"):
        NormalsPrior(WangGlobalEncoder(), partial(PatchDecoder, cells=20), 20, str(tmp_path / "global.ckpt"))


def test_a_checkpoint_of_the_fusion_network_needs_no_file_of_its_priors(tmp_path):
    torch.manual_seed(0)
    other = DensePredictor(WangGlobalEncoder(widths=FEW), partial(PatchDecoder, cells=20), [CodebookNormals(20)])
    torch.save({"state_dict": other.state_dict()}, tmp_path / "global.ckpt")
    encoder = fusion([prior(weights=str(tmp_path / "global.ckpt"))])
    module = DensePredictor(encoder, partial(PatchDecoder, cells=13, hidden=8), [CodebookNormals(40)]).eval()
    state = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6",
    }
    torch.save(state, tmp_path / "fusion.ckpt")
    (tmp_path / "global.ckpt").unlink()
    again = DensePredictor.load_from_checkpoint(tmp_path / "fusion.ckpt").eval()
    image = torch.rand(1, 3, 65, 91)
    torch.testing.assert_close(again(image)["normals"], module(image)["normals"])


def test_weights_of_priors_are_left_out_of_what_a_checkpoint_rebuilds():
    one = {"class_path": "NormalsPrior", "init_args": {"weights": "a.ckpt", "codebook": 20}}
    plain = {"encoder": {"init_args": {"priors": [one], "in_channels": 3}}}
    found = without_starting_weights(plain)["encoder"]["init_args"]["priors"][0]["init_args"]
    assert found == {"weights": None, "codebook": 20}
    assert one["init_args"]["weights"] == "a.ckpt"


def test_channels_beyond_the_colours_are_further_predictions():
    encoder = fusion([prior()], in_channels=15)  # 15 + 3 of a prior make the published 18
    assert encoder.encoder.trunk[0].in_channels == 18
    assert encoder(torch.rand(1, 15, 65, 65))[0].shape[-2:] == (5, 5)
    with pytest.raises(ConfigurationError, match="1 priors make 6; WangLocalEncoder was built for 3"):
        FusionEncoder(WangLocalEncoder(3, FEW), [prior()])
    with pytest.raises(ConfigurationError, match="a prior wants an image of 3 channels, this one has 1"):
        fusion([prior()], in_channels=1)


# ---------------------------------------------------------------------------------------------- rooms


def turned() -> np.ndarray:
    """A room's axes as columns, in the camera's frame: turned by 30 degrees and looked at from above by 20."""
    a, b = np.radians(30), np.radians(20)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return tilt @ turn


def test_normals_from_vanishing_points_are_the_axes_of_the_room():
    """Lines along an axis d meet at f d / d_z; the plane of two axes has the third as its normal."""
    axes, focal = turned(), 500.0
    points = [tuple(focal * axis[:2] / axis[2]) for axis in axes.T]
    for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        found = normal_of_plane(points[i], points[j], focal)
        assert abs(float(found @ torch.tensor(axes[:, k]).float())) == pytest.approx(1, abs=1e-6)
        assert found[2] <= 0
        # the published form
        (x1, y1), (x2, y2) = points[i], points[j]
        p, q = focal * (y1 - y2) / (x1 * y2 - x2 * y1), focal * (x2 - x1) / (x1 * y2 - x2 * y1)
        published = np.array([p, q, 1]) / np.linalg.norm([p, q, 1])
        assert abs(float(found @ torch.tensor(published).float())) == pytest.approx(1, abs=1e-6)
    directions = room_directions(points, focal)
    torch.testing.assert_close(directions[:3] @ directions[:3].T, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(directions[3:], -directions[:3])


def test_normals_are_snapped_to_the_nearest_direction_and_missing_ones_stay_missing():
    torch.manual_seed(0)
    axes = torch.tensor(turned()).float().T
    directions = torch.cat([axes, -axes])
    truth = directions[torch.randint(6, (2, 5, 7))].permute(0, 3, 1, 2)
    noisy = F.normalize(truth + 0.2 * torch.randn_like(truth), dim=1)
    noisy[0, :, 0] = 0
    found = rectified(noisy, directions)
    assert (found[0, :, 0] == 0).all()
    torch.testing.assert_close(found[1], truth[1])
    torch.testing.assert_close(rectified(noisy, directions.expand(2, 6, 3)), found)


def test_the_layout_of_an_image_is_the_one_of_the_greatest_mean_score():
    templates = torch.randn(4, 3, 6, 8)
    scores = torch.zeros(2, 4, 1, 1)
    scores[0, 2], scores[1, 0] = 1, 1
    torch.testing.assert_close(layout_normals(scores, templates), templates[[2, 0]])


@pytest.mark.parametrize("points", [[(0.0, 0.0)] * 2, []])
def test_too_few_vanishing_points_are_refused(points):
    with pytest.raises(ConfigurationError, match="three vanishing points; got"):
        room_directions(points, 500.0)
    with pytest.raises(ConfigurationError, match="both are"):
        normal_of_plane((1.0, 2.0), (1.0, 2.0), 500.0)
