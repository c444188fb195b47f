"""Tiles: with them the answer is the one without them, whatever the sizes; and memory follows the tile."""

import pytest
import torch
from torch import nn

from densepred.decoders.deeplab import DeepLabV3Decoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference.dropout import MonteCarloDropout
from densepred.inference.evidence import Evidence, MeanEvidence, NetworkEvidence
from densepred.inference.options import InferenceOptions
from densepred.inference.tile_axis import blended_tiles, cropped_tiles
from densepred.inference.tile_margin import exact_margin
from densepred.inference.tiling import Tiled
from densepred.network import DenseNetwork
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation

TASKS = [Segmentation(4), Depth(log=True), Normals()]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def network_of(encoder, tasks=TASKS, seed=0, **options):
    torch.manual_seed(seed)
    network = DenseNetwork(encoder, lambda *a: UNetDecoder(*a, **options), {t.name: t.out_channels for t in tasks})
    return NetworkEvidence(network.eval(), tasks)


def small(tasks=TASKS, widths=(4, 6, 8), seed=0):
    """A U-Net whose receptive field is 44 pixels."""
    return network_of(UNetEncoder(widths=widths), tasks, seed, widths=widths[-2::-1])


def photo(*size, channels=3):
    return torch.randint(0, 256, (1, channels, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


class Pixelwise(Evidence):
    """Says of every pixel what its own colours are: probabilities, log depth, normals."""

    def __init__(self):
        super().__init__([Segmentation(3), Depth(), Normals()])
        self.asked = []

    def __call__(self, image):
        self.asked.append(tuple(image.shape))
        values = image.float() / 255 + 0.1
        return {
            "segmentation": values / values.sum(1, keepdim=True),
            "depth": values[:, :1].log(),
            "normals": values / torch.linalg.vector_norm(values, dim=1, keepdim=True),
        }


@pytest.mark.parametrize("size", [1, 7, 40, 41, 63, 64, 100, 333])
@pytest.mark.parametrize(("tile", "overlap", "align"), [(40, 20, 1), (40, 0, 8), (48, 30, 16), (40, 39, 1)])
def test_weights_of_all_tiles_add_up_to_one_at_every_pixel(size, tile, overlap, align):
    for mirror in ((0, 0), (16, 16), (0, 50)):
        for tiles in (
            blended_tiles(size, tile, overlap, align, mirror),
            cropped_tiles(size, tile, (tile - align) // 2, align, mirror),
        ):
            total = torch.zeros(size)
            for one in tiles:
                total[one.first : one.last] += one.weights
                assert one.start <= one.first < one.last <= one.stop <= one.start + tile
                assert (one.start + mirror[0]) % align == 0
            torch.testing.assert_close(total, torch.ones(size))


def test_weights_are_a_gaussian_of_an_eighth_of_the_tile():
    left, right = blended_tiles(96, tile=64, overlap=32)
    place = torch.arange(64, dtype=torch.float64)
    bell = torch.exp(-((place - 31.5) ** 2) / (2 * 8.0**2))
    torch.testing.assert_close(left.weights[32:], (bell[32:] / (bell[32:] + bell[:32])).float())
    assert (left.weights[:32] == 1).all()
    torch.testing.assert_close(right.weights, left.weights.flip(0))


@pytest.mark.parametrize("size", [(5, 9), (32, 40), (33, 100), (64, 64), (97, 131), (1, 10000), (200, 1)])
@pytest.mark.parametrize("options", [{}, {"overlap": 0.5, "batch_size": 3}, {"margin": 6}, {"mirror": 20}])
def test_what_is_known_pixel_by_pixel_is_the_same_with_tiles(size, options):
    image = photo(*size).expand(2, -1, -1, -1).clone()
    image[1] = image[1].flip(-1)
    evidence = Pixelwise()
    tiled = Tiled(evidence, (32, 40), **options)
    expected = evidence(image)
    evidence.asked.clear()
    for name, planes in tiled(image).items():
        torch.testing.assert_close(planes, expected[name], atol=1e-6, rtol=1e-6)
    assert max(shape[-2] for shape in evidence.asked) <= 32
    assert max(shape[-1] for shape in evidence.asked) <= 40
    for name, values in tiled.predict(image).items():
        assert values.shape[-2:] == size
        if name != "segmentation":  # two classes may be equally probable
            torch.testing.assert_close(values, evidence.predict(image)[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(150, 211), (64, 64), (40, 300), (129, 97)])
def test_with_the_margin_of_its_receptive_field_a_network_says_of_tiles_what_it_says_of_the_image(size):
    evidence = small()
    tiled, image = Tiled.exact(evidence, (96, 80), batch_size=2), photo(*size)
    for name, planes in evidence(image).items():
        torch.testing.assert_close(tiled(image)[name], planes, atol=1e-4, rtol=0)
    for name, values in evidence.predict(image).items():
        torch.testing.assert_close(tiled.predict(image)[name], values, atol=1e-4, rtol=1e-4)


def test_a_narrower_margin_than_the_receptive_field_is_not_exact():
    evidence, image = small(), photo(150, 211)
    difference = Tiled(evidence, 96, margin=4)(image)["depth"] - evidence(image)["depth"]
    assert difference.abs().max() > 1e-3


def test_a_network_of_stride_32_says_of_tiles_what_it_says_of_the_image():
    evidence, image = small(widths=(2, 2, 2, 2, 2, 2)), photo(65, 1300)
    with torch.inference_mode():  # as a predictor does
        tiled = Tiled.exact(evidence, 800)
    assert len(tiled.rows_and_columns((65, 1300))[1]) > 1
    for name, planes in evidence(image).items():
        torch.testing.assert_close(tiled(image)[name], planes, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(300, 420), (97, 333)])
def test_the_unpadded_u_net_says_exactly_the_same_tile_by_tile(size):
    encoder = UNetEncoder(1, (2, 2, 2), padded=False, norm="none", mean=[0.0], std=[1.0])
    evidence = network_of(encoder, [Depth("planes", log=True)], norm="none", upsampling="transposed", widths=(2, 2))
    generator = torch.Generator().manual_seed(3)
    for parameter in evidence.network.parameters():  # small whole numbers: sums are exact in any order
        parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator).float())
    evidence.tasks[0].activate = lambda planes: planes
    evidence.tasks[0].evidence = lambda output: output
    image = torch.randint(0, 2, (1, 1, *size), generator=generator).float()
    whole = evidence(image)["planes"]
    tiled = Tiled.exact(evidence, 128)
    assert len(tiled.rows_and_columns(size)[1]) > 2
    assert whole.unique().numel() > 20
    assert torch.equal(tiled(image)["planes"], whole)


def test_the_exact_margin_of_the_published_u_net_is_its_92_pixels_and_up_to_three_cells():
    encoder = UNetEncoder(1, (1,) * 5, padded=False, norm="none")
    evidence = network_of(encoder, [Depth()], norm="none", upsampling="transposed", widths=(1,) * 4)
    assert 92 <= exact_margin(evidence) <= 92 + 3 * 16


def test_blended_tiles_come_close_to_the_whole_image_in_every_task():
    evidence, image = small(), photo(200, 260)
    blended, cut = (Tiled(evidence, 96, overlap)(image) for overlap in (0.5, 0))
    for name, planes in evidence(image).items():
        error, without_overlap = ((other[name] - planes).abs().mean() for other in (blended, cut))
        assert error < without_overlap / 3


def test_a_constant_answer_stays_that_constant_and_normals_keep_their_length():
    evidence = Pixelwise()
    tiled = Tiled(evidence, 40, 0.3)
    image = torch.full((1, 3, 111, 87), 77, dtype=torch.uint8)
    for planes in tiled(image).values():
        assert (planes.amax((-2, -1)) - planes.amin((-2, -1))).max() < 1e-6
    length = torch.linalg.vector_norm(tiled.predict(photo(90, 70))["normals"], dim=1)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_depth_is_averaged_in_logarithms():
    class Growing(Evidence):
        def __init__(self):
            super().__init__([Depth()])
            self.answers_given = iter([1.0, 4.0])

        def __call__(self, image):
            return {"depth": torch.full_like(image[:, :1].float(), next(self.answers_given)).log()}

    metres = Tiled(Growing(), (8, 8), 7).predict(photo(8, 9))["depth"]
    tiles = blended_tiles(9, 8, 7)
    expected = 4 ** tiles[1].weights[:-1]  # 1^(1 - w) 4^w
    torch.testing.assert_close(metres[0, 0, 0, 1:8], expected)


def test_mirrored_borders_are_those_of_the_mirrored_image():
    evidence, image = small(), photo(70, 90)
    mirrored = torch.nn.functional.pad(image.float() / 255, (64, 64, 64, 64), mode="reflect")
    expected = evidence(mirrored)["depth"][..., 64:-64, 64:-64]
    tiled = Tiled(evidence, 256, mirror=64)
    torch.testing.assert_close(tiled(image)["depth"], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 300), (300, 2), (31, 32), (1, 1)])
def test_images_that_networks_refuse_are_mirrored_until_they_fill_a_tile(size):
    evidence = small()
    with pytest.raises(ConfigurationError, match="more than 32 pixels"):
        evidence(photo(*size))
    prediction = Tiled(evidence, 64).predict(photo(*size))
    assert {name: values.shape[-2:] for name, values in prediction.items()} == dict.fromkeys(prediction, size)
    assert prediction["depth"].isfinite().all()


def test_an_ensemble_in_tiles_tells_how_its_members_differ():
    members = [small(seed=seed) for seed in (0, 1)]
    image = photo(100, 120)
    joint = Tiled.exact(MeanEvidence(members), 96)
    answers = list(joint.answers(image))
    assert joint.averages
    for answer, member in zip(answers, members, strict=True):
        torch.testing.assert_close(answer["depth"], member(image)["depth"], atol=1e-4, rtol=0)
    torch.testing.assert_close(joint(image)["depth"], (answers[0]["depth"] + answers[1]["depth"]) / 2)


def test_options_ask_tile_by_tile():
    options = InferenceOptions(tile=64, overlap=16)
    tiled = options.applied(small())
    assert isinstance(tiled, Tiled)
    assert (tiled.tile, tiled.overlap) == ((64, 64), 16)


def test_stripes_change_nothing():
    evidence, image = small(), photo(150, 400)
    tiled = Tiled(evidence, 96)
    whole, seen, asked = tiled(image), torch.zeros(150, 400), []
    regions = tiled.regions(
        lambda rows, columns: image[..., rows, columns],
        (150, 400),
        sums=4 * 8 * 120 * 96,
        cell=32,
        on_tiles=asked.append,
    )
    for rows, columns, evidence_there in regions:
        assert rows.start % 32 == columns.start % 32 == 0
        seen[rows, columns] += 1
        for name, planes in evidence_there.items():
            torch.testing.assert_close(planes, whole[name][..., rows, columns], atol=1e-6, rtol=1e-6)
    assert (seen == 1).all()
    assert sum(asked) == tiled.count((150, 400), 4 * 8 * 120 * 96, 32) > tiled.count((150, 400))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 20}, "too small for this network, whose coarsest cells are 4 pixels: give at least 36"),
        ({"tile": 64, "overlap": 1.0}, "overlap is 1.0"),
        ({"tile": (64, 80), "overlap": 64}, r"fewer than its sides \(64 x 80\)"),
        ({"tile": 64, "overlap": -1}, "overlap is -1"),
        ({"tile": 64, "margin": 31}, "leaves nothing of tiles of 64 x 64"),
        ({"tile": 64, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_tiles_that_cannot_work_are_refused_with_the_way_out(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Tiled(small(), **options)


def test_networks_that_look_at_the_whole_image_have_no_exact_tiles():
    network = DenseNetwork(UNetEncoder(widths=(2, 2, 2, 2)), DeepLabV3Decoder, {"depth": 1}).eval()
    with pytest.raises(ConfigurationError, match="looks at the whole image"):
        Tiled.exact(NetworkEvidence(network, [Depth()]), 512)
    dropping = small()
    dropping.network.encoder.levels[0].append(nn.Dropout(0.1))
    with pytest.raises(ConfigurationError, match="not of MonteCarloDropout"):
        Tiled.exact(MonteCarloDropout(dropping, 2), 512)
