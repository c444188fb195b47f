"""Normals as shares of codewords: the way there and back, what is missing, mirror images, files and checkpoints."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densepred.cli import main
from densepred.codebook import Codebook
from densepred.codewords import fit_codewords, hemisphere_codewords, resolved, triangulate, with_codewords_read
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference.augmented import TestTimeAugmentation
from densepred.inference.evidence import NetworkEvidence
from densepred.losses.codebook import CodebookLoss
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.tasks.codebook import CodebookNormals, cell_normals
from tests import fakes


def facing(*shape: int) -> torch.Tensor:
    """Random directions of the hemisphere that faces the camera."""
    normals = torch.randn(shape[0], 3, *shape[1:], dtype=torch.float64)
    normals[:, 2] = -normals[:, 2].abs()
    return F.normalize(normals, dim=1).float()


def degrees(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.atan2(torch.linalg.cross(a, b, dim=1).norm(dim=1), (a * b).sum(1)).rad2deg()


def columns(vectors: torch.Tensor) -> torch.Tensor:
    """(N, 3) as a picture (N, 3, 1, 1)."""
    return vectors[..., None, None]


COUNTS = [5, 8, 20, 40, 100]


@pytest.fixture(scope="module", params=["even 5", "even 20", "even 40", "even 100", "fitted 20", "fitted 40"])
def book(request) -> Codebook:
    kind, count = request.param.split()
    if kind == "even":
        return Codebook(int(count))
    torch.manual_seed(int(count))
    sharp = F.normalize(torch.randn(5000, 3) + torch.tensor([0.0, -1.0, -2.0]), dim=1)
    return Codebook(fit_codewords(sharp.numpy(), int(count)).tolist())


# ---------------------------------------------------------------------------------------------- codewords


@pytest.mark.parametrize("count", COUNTS)
def test_the_default_codewords_are_unit_vectors_that_face_the_camera_and_hold_the_walls_of_a_room(count):
    words = hemisphere_codewords(count)
    assert words.shape == (count, 3)
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, atol=1e-12)
    assert (words[:, 2] <= 0).all()
    for axis in ([1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]):
        assert np.linalg.norm(words - axis, axis=1).min() < 1e-12


@pytest.mark.parametrize("count", [20, 40, 100])
def test_the_default_codewords_are_spread_evenly(count):
    """Each has about the hemisphere's share, a disc of radius acos(1 - 1 / count), around it."""
    cosine = hemisphere_codewords(count) @ hemisphere_codewords(count).T - 2 * np.eye(count)
    nearest = np.degrees(np.arccos(cosine.max(1)))
    disc = math.degrees(math.acos(1 - 1 / count))
    assert nearest.min() > 0.9 * disc
    assert nearest.max() < 3 * disc


@pytest.mark.parametrize("count", [20, 40])
def test_triangles_are_empty_circles_and_tile_the_hemisphere_once(count):
    """Delaunay: no codeword inside a circumcircle. Areas (Girard's theorem, as Eriksson's formula) sum to 2 pi."""
    words = hemisphere_codewords(count)
    triangles = triangulate(words)
    a, b, c = (words[triangles[:, i]] for i in range(3))
    poles = np.cross(b - a, c - a)
    poles *= np.sign((poles * a).sum(1, keepdims=True)) / np.linalg.norm(poles, axis=1, keepdims=True)
    inside = poles @ words.T - (poles * a).sum(1, keepdims=True)
    assert inside.max() < 1e-9
    volume = np.abs((a * np.cross(b, c)).sum(1))
    area = 2 * np.arctan2(volume, 1 + (a * b).sum(1) + (b * c).sum(1) + (c * a).sum(1))
    assert area.sum() == pytest.approx(2 * math.pi, rel=1e-9)


def test_fitted_codewords_are_the_centres_of_separate_bundles_whatever_the_seed():
    rng = np.random.default_rng(0)
    centres = hemisphere_codewords(12)
    bundles = np.repeat(centres, rng.integers(50, 90, 12), axis=0)
    normals = bundles + 0.02 * rng.standard_normal(bundles.shape)
    for seed in range(3):
        found = fit_codewords(np.concatenate([normals, np.zeros((30, 3))]), 12, seed)  # zeros are missing
        nearest = found[(centres @ found.T).argmax(1)]
        assert np.degrees(np.arccos((centres * nearest).sum(1).clip(-1, 1))).max() < 1
        assert len(np.unique(nearest, axis=0)) == 12


def test_fitted_codewords_are_fixed_points_and_nearer_to_the_normals_than_even_ones():
    torch.manual_seed(0)
    normals = F.normalize(torch.randn(4000, 3) * torch.tensor([1.0, 0.3, 0.5]) - torch.tensor([0.0, 0, 1]), dim=1)
    normals = normals.double().numpy()
    found = fit_codewords(normals, 20)
    nearest = (normals @ found.T).argmax(1)
    for word in range(20):  # each is the mean direction of its own
        mean = normals[nearest == word].sum(0)
        assert (mean / np.linalg.norm(mean)) @ found[word] > math.cos(math.radians(0.5))
    assert (np.diff(np.bincount(nearest)) <= 0).all()
    assert (normals @ found.T).max(1).mean() > (normals @ hemisphere_codewords(20).T).max(1).mean()


@pytest.mark.parametrize(
    ("codebook", "words"),
    [
        (4, "at least 5 codewords; got 4"),
        ([[1.0, 0.0], [0.0, 1.0]], "expected unit vectors"),
        ([[0.0, 0.0, -2.0]] * 5, "expected unit vectors"),
        ([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], "span no volume"),
        ([*hemisphere_codewords(8).tolist(), [1.0, 0.0, 0.0]], "1 of 9 are equal"),
        ("nowhere.json", "there is no nowhere.json. Write it with: densepred codebook"),
    ],
)
def test_what_is_no_codebook_is_refused(codebook, words):
    with pytest.raises(ConfigurationError, match=words):
        Codebook(codebook)


def test_more_codewords_than_different_normals_are_refused():
    with pytest.raises(ConfigurationError, match="only 3 different normals"):
        fit_codewords(np.repeat(np.eye(3), 4, axis=0), 4)


# ---------------------------------------------------------------------------------------------- there and back


def test_a_normal_equal_to_a_codeword_comes_back_as_itself(book):
    words = columns(book.codewords)
    for soft in (True, False):
        shares = book.encode(words, soft)
        torch.testing.assert_close(shares[:, :, 0, 0], torch.eye(len(book)), atol=1e-5, rtol=0)
        assert degrees(book.decode(shares), words).max() < 0.01
        assert degrees(F.normalize(book.expectation(shares), dim=1), words).max() < 0.01


def test_a_normal_inside_the_triangles_is_recovered_to_far_less_than_a_degree(book):
    torch.manual_seed(0)
    shares = torch.rand(2000, 3).clamp(min=0.01)
    corners = book.codewords[book.triangles[torch.randint(len(book.triangles), (2000,))]]
    normals = columns(F.normalize((shares[..., None] * corners).sum(1), dim=1))
    encoded = book.encode(normals)
    assert degrees(book.decode(encoded), normals).max() < 0.05
    assert degrees(F.normalize(book.expectation(encoded), dim=1), normals).max() < 0.05


@pytest.mark.parametrize("count", COUNTS)
def test_every_normal_that_faces_the_camera_is_recovered_with_the_default_codewords(count):
    torch.manual_seed(0)
    book, normals = Codebook(count), facing(1, 40, 50)
    edge = torch.linspace(0, 2 * math.pi, 100)
    rim = torch.stack([edge.cos(), edge.sin(), 0 * edge]).view(1, 3, 1, 100)
    for given in (normals, rim):
        assert degrees(book.decode(book.encode(given)), given).max() < 0.05


def test_shares_are_three_weights_that_sum_to_one(book):
    torch.manual_seed(0)
    shares = book.encode(facing(2, 8, 9))
    assert shares.shape == (2, len(book), 8, 9)
    assert (shares >= 0).all()
    assert ((shares > 0).sum(1) <= 3).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 8, 9))


def test_a_normal_outside_of_all_triangles_comes_back_at_least_as_near_as_its_nearest_codeword(book):
    torch.manual_seed(0)
    anywhere = F.normalize(torch.randn(1, 3, 40, 50), dim=1)
    nearest = book.codewords[book.nearest(anywhere)].permute(0, 3, 1, 2)
    found = book.decode(book.encode(anywhere))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1, 40, 50))
    assert (degrees(found, anywhere) <= degrees(nearest, anywhere) + 0.1).all()


def test_hard_shares_are_the_codeword_at_the_smallest_angle(book):
    torch.manual_seed(0)
    normals = facing(1, 10, 10)
    expected = (normals.permute(0, 2, 3, 1) @ book.codewords.T).argmax(-1)
    assert torch.equal(book.encode(normals, soft=False).argmax(1), expected)
    assert torch.equal(book.nearest(normals), expected)


def test_a_missing_normal_has_no_shares(book):
    normals = facing(1, 4, 5)
    normals[..., 0] = 0
    normals[..., 1] = math.nan
    for soft in (True, False):
        shares = book.encode(normals, soft)
        assert (shares[..., :2] == 0).all()
        torch.testing.assert_close(shares[..., 2:].sum(1), torch.ones(1, 4, 3))


def test_autocast_rounds_nothing(book):
    torch.manual_seed(0)
    normals, scores = facing(1, 9, 10), torch.randn(1, len(book), 9, 10)
    made = book.encode(normals), book.nearest(normals), book.decode(scores.softmax(1)), book.expectation(scores)
    with torch.autocast("cpu", torch.bfloat16):
        again = book.encode(normals), book.nearest(normals), book.decode(scores.softmax(1)), book.expectation(scores)
    for one, other in zip(made, again, strict=True):
        torch.testing.assert_close(other, one)


def test_the_triangle_of_the_greatest_sum_decides_not_the_greatest_codeword():
    """Checked against every triangle, one by one, in double precision."""
    torch.manual_seed(0)
    book = Codebook(20)
    probabilities = (3 * torch.randn(1, 20, 6, 7)).softmax(1)
    words = np.array(book.values)
    for row, column in itertools.product(range(6), range(7)):
        p = probabilities[0, :, row, column].double().numpy()
        best = max(book.triangles.tolist(), key=lambda corners: p[corners].sum())
        expected = (p[best, None] * words[best]).sum(0)
        found = book.decode(probabilities)[0, :, row, column].numpy()
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_a_distribution_of_two_peaks_is_decoded_as_one_of_them_while_the_expectation_lies_between():
    book = Codebook(40)
    left, right = columns(F.normalize(torch.tensor([[-0.8, 0.1, -0.5], [0.8, 0.1, -0.5]]), dim=1)).unbind()
    shares = 0.55 * book.encode(left[None]) + 0.45 * book.encode(right[None])
    assert degrees(book.decode(shares), left[None]).max() < 0.1
    between = F.normalize(book.expectation(shares), dim=1)
    assert degrees(between, left[None]).min() > 20
    assert degrees(between, right[None]).min() > 20


# ---------------------------------------------------------------------------------------------- loss


def test_the_loss_is_the_cross_entropy_with_the_shares():
    torch.manual_seed(0)
    loss, normals, scores = CodebookLoss(20), facing(2, 5, 6), torch.randn(2, 20, 5, 6)
    normals[0, :, :2] = 0
    known = (normals != 0).any(1)
    shares = loss.codebook.encode(normals).permute(0, 2, 3, 1)[known]
    expected = F.cross_entropy(scores.permute(0, 2, 3, 1)[known], shares)
    torch.testing.assert_close(loss(scores, normals), expected)
    hard = CodebookLoss(20, soft=False)
    expected = F.cross_entropy(scores.permute(0, 2, 3, 1)[known], hard.codebook.nearest(normals)[known])
    torch.testing.assert_close(hard(scores, normals), expected)


def test_scores_of_another_number_of_codewords_are_refused():
    with pytest.raises(ConfigurationError, match="a score for each of 40 codewords"):
        CodebookLoss(40)(torch.zeros(1, 20, 4, 5), torch.zeros(1, 3, 4, 5))


def test_descending_the_loss_leads_to_the_normals():
    torch.manual_seed(0)
    task, normals = CodebookNormals(40), facing(1, 4, 5)
    scores = torch.zeros(1, 40, 4, 5, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        task.loss_from_planes(scores, {"normals": normals}).backward()
        optimizer.step()
    assert degrees(task.predict(scores.detach()), normals).max() < 1


# ---------------------------------------------------------------------------------------------- task


def test_a_cell_is_the_mean_direction_of_what_is_known_in_it():
    normals = torch.zeros(1, 3, 4, 6)
    right, towards = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, -1])
    normals[0, :, 0, 0], normals[0, :, 1, 1] = right, towards  # two of four known
    normals[0, :, 0, 2], normals[0, :, 0, 3] = right, -right  # cancel out
    normals[0, :, :2, 4:] = towards[:, None, None]
    cells = cell_normals(normals, (2, 3))[0].permute(1, 2, 0)
    torch.testing.assert_close(cells[0, 0], (right + towards) / math.sqrt(2))
    assert (cells[0, 1] == 0).all()
    torch.testing.assert_close(cells[0, 2], towards)
    assert (cells[1] == 0).all()


def test_losses_of_cells_and_of_pixels_agree_where_cells_are_of_one_normal():
    torch.manual_seed(0)
    coarse, scores = facing(1, 3, 4), torch.randn(1, 20, 1, 1).expand(1, 20, 3, 4)
    fine = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    batch = {"image": torch.zeros(1, 3, 12, 16), "normals": fine}
    by_cell, by_pixel = (CodebookNormals(20, per_cell=value).loss_from_planes(scores, batch) for value in (True, False))
    torch.testing.assert_close(by_cell, by_pixel)


@pytest.mark.parametrize("decode", ["triangle", "expectation"])
def test_the_evidence_of_a_mirror_image_is_turned_around(decode):
    """Scores that a mirrored room would give, at codewords that have no mirror images among them."""
    torch.manual_seed(0)
    words = F.normalize(torch.randn(20, 3) - torch.tensor([0.0, 0.0, 1.5]), dim=1).tolist()
    task, turn = CodebookNormals(words, decode=decode), torch.tensor([-1.0, 1, 1]).view(1, 3, 1, 1)
    book = task.codebook
    corners = book.codewords[book.triangles[torch.randint(len(book.triangles), (400,))]]
    normals = F.normalize(corners.mean(1), dim=1)
    inside = normals.T.reshape(1, 3, 20, 20)
    evidence = task.evidence(book.encode(inside).log())
    seen_in_mirror = task.unflipped(evidence)
    assert degrees(task.decide(seen_in_mirror), inside.flip(-1) * turn).max() < 0.1
    torch.testing.assert_close(task.unflipped(seen_in_mirror), evidence)


@pytest.mark.parametrize("decode", ["triangle", "expectation"])
def test_averages_over_mirror_images_are_averages_of_vectors(decode):
    torch.manual_seed(0)
    task = CodebookNormals(20, decode=decode)
    network = DenseNetwork(ResNetEncoder("resnet18"), UNetDecoder, {"normals": 20}).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        plain = NetworkEvidence(network, [task])
        found = TestTimeAugmentation(plain, flip=True)(image)["normals"]
        mirror = plain(image.flip(-1))["normals"].flip(-1)
        mirror[:, 0] *= -1
        torch.testing.assert_close(found, (plain(image)["normals"] + mirror) / 2)
        assert torch.equal(plain.predict(image)["normals"], task.decide(plain(image)["normals"]))
        lengths = plain(image)["normals"].norm(dim=1)
    assert (lengths <= 1 + 1e-5).all()
    assert (lengths < 0.99).any() == (decode == "expectation")


def test_the_mean_of_expectations_is_the_expectation_of_the_mean_distribution():
    torch.manual_seed(0)
    task = CodebookNormals(20, decode="expectation")
    first, second = torch.randn(2, 1, 20, 3, 4)
    mean = (first.softmax(1) + second.softmax(1)) / 2
    torch.testing.assert_close((task.evidence(first) + task.evidence(second)) / 2, task.codebook.expectation(mean))


def test_between_two_cells_the_expectation_goes_from_one_to_the_other_and_stays_at_no_codeword():
    task = CodebookNormals(20, decode="expectation")
    two = F.normalize(torch.tensor([[0.3, 0.1, -1.0], [-0.5, 0.2, -1.0]]), dim=1).T.reshape(1, 3, 1, 2)
    scores = task.codebook.encode(two).log()  # triangles that share no codeword leave nothing between logits
    found = task.evidence(task.output_from_planes(scores, (1, 16)))
    exact = task.codebook.expectation(task.codebook.encode(two))
    torch.testing.assert_close(found, F.interpolate(exact, size=(1, 16), mode="bilinear", align_corners=False))
    torch.testing.assert_close(task.predict_from_planes(scores, (1, 16)), F.normalize(found, dim=1))


def test_a_prediction_is_a_unit_vector_and_is_scored_and_drawn_as_normals_are():
    task = CodebookNormals(20)
    prediction = task.predict(torch.randn(2, 20, 5, 6))
    assert prediction.shape == (2, 3, 5, 6)
    torch.testing.assert_close(prediction.norm(dim=1), torch.ones(2, 5, 6))
    metric = task.metrics("val")
    metric.update(prediction, prediction)
    assert metric.compute()["mean_angle"] < 0.1
    assert task.render(prediction).dtype == torch.uint8


# ---------------------------------------------------------------------------------------------- files, checkpoints


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codebook")
    data = ["--data", "RoomsDataModule", "--data.size=[64,64]", "--data.train=6", "--data.val=2", "--data.test=2"]
    limits = ["--codewords", "12", "--pixels", "200", "--limit", "3"]
    assert main(["codebook", *data, "--output", str(folder / "words.json"), *limits]) == 0
    return folder / "words.json"


def test_the_command_writes_codewords_that_a_task_takes(fitted):
    record = json.loads(fitted.read_text())
    assert record["data"] == "RoomsDataModule"
    assert record["normals"] == 3 * 200
    task = CodebookNormals(str(fitted))
    assert task.out_channels == 12
    np.testing.assert_allclose(task.codebook.codewords, record["codebook"], atol=1e-5)


def test_a_data_set_without_normals_is_refused(tmp_path, capsys):
    root = fakes.write_nyu(tmp_path / "nyu", size=(48, 64))
    data = ["--data", "NYUDepthV2DataModule", "--data.root", str(root), "--data.targets=[depth]"]
    assert main(["codebook", *data, "--output", str(tmp_path / "words.json")]) == 1
    assert "samples have no 'normals'" in capsys.readouterr().err


def test_a_configuration_holds_the_codewords_in_place_of_their_file(fitted):
    options = {"tasks": [{"class_path": "CodebookNormals", "init_args": {"codebook": str(fitted)}}], "codebook": 40}
    read = with_codewords_read(options)
    assert read["tasks"][0]["init_args"]["codebook"] == resolved(str(fitted))
    assert read["codebook"] == 40


@pytest.mark.parametrize("given", ["a number", "vectors", "a file"])
def test_a_checkpoint_is_loaded_without_the_file(given, fitted, tmp_path):
    words = tmp_path / "words.json"
    words.write_text(fitted.read_text())
    codebook = {"a number": 12, "vectors": resolved(str(fitted)), "a file": str(words)}[given]
    encoder = ResNetEncoder("resnet18")
    module = DensePredictor(encoder, UNetDecoder, [CodebookNormals(codebook, decode="expectation")]).eval()
    image = torch.rand(1, 3, 64, 64)
    expected = module(image)["normals"]
    state = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6",
    }
    torch.save(state, tmp_path / "a.ckpt")
    words.unlink()
    again = DensePredictor.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    assert torch.equal(again(image)["normals"], expected)
    assert again.tasks[0].decode == "expectation"


@pytest.mark.slow
def test_a_run_with_a_file_of_codewords_is_tested_without_it(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("words.json").write_text(fitted.read_text())
    small = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False}
    assert main([
        "fit", "--model", "DensePredictor", "--model.encoder", "ResNetEncoder", "--model.encoder.name", "resnet18",
        "--model.decoder", "UNetDecoder",
        "--model.tasks=[{class_path: CodebookNormals, init_args: {codebook: words.json}}]",
        "--data", "RoomsDataModule", "--data.size=[64,64]", "--data.train=4", "--data.val=2", "--data.test=2",
        "--data.batch_size=2", "--data.num_workers=0", *(f"--trainer.{key}={value}" for key, value in small.items()),
    ]) == 0  # fmt: skip
    Path("words.json").unlink()
    assert main(["test", "--ckpt_path", "last"]) == 0
