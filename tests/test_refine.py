"""A dense CRF behind the decoder: what it sees, what it leaves alone, and that it is trained, kept and measured."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from densepred.anatomy.memory import step_memory
from densepred.anatomy.stages import trace
from densepred.callbacks.summary import network_table
from densepred.decoders.fcn import FCNDecoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference.evidence import NetworkEvidence
from densepred.inference.export import DeployedNetwork
from densepred.inference.predictor import Predictor
from densepred.inference.safetensors_file import export_safetensors
from densepred.inference.tile_margin import exact_margin
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.recipe import arguments_of
from densepred.refine.crf_rnn import CRFAsRNN
from densepred.refine.dense_crf import DenseCRF
from densepred.tasks.depth import Depth
from densepred.tasks.segmentation import Segmentation

CLASSES = 3
SIZE = (40, 50)  # padded to 64 x 64
KERNELS = {"smooth": 2.0, "near": 12.0, "colour": 40.0}


def learned(classes: int = CLASSES, **options) -> CRFAsRNN:
    return CRFAsRNN(classes, **{**KERNELS, "iterations": 2, "test_iterations": 3, **options})


def fcn(tasks=None, refine=None, **options) -> DensePredictor:
    """FCN-8s on ResNet-18; scores do not start at zero, so that there is something to refine."""
    torch.manual_seed(0)
    module = DensePredictor(ResNetEncoder("resnet18"), FCNDecoder, tasks or [Segmentation(CLASSES)], refine=refine,
                            **options)  # fmt: skip
    for name, parameter in module.network.decoders.named_parameters():
        if "weight" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return module


def sample(index: int) -> dict:
    random = torch.Generator().manual_seed(index)
    cells = torch.randint(0, CLASSES, (5, 5), generator=random)
    labels = cells.repeat_interleave(8, 0).repeat_interleave(10, 1).to(torch.uint8)
    image = torch.stack([60 * labels + 40, 200 - 80 * labels, 10 * labels])
    labels[:2] = 255
    depth = 1 + 4 * torch.rand(1, *SIZE, generator=random)
    return {"image": image, "segmentation": labels, "depth": depth, "name": f"fake/{index}"}


def batch(count: int = 2) -> dict:
    samples = [sample(index) for index in range(count)]
    return {key: torch.stack([one[key] for one in samples]) for key in ("image", "segmentation", "depth")}


def trainer(folder, **options) -> pl.Trainer:
    defaults = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False,
                "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    return pl.Trainer(default_root_dir=folder, **{**defaults, **options})


@pytest.mark.parametrize("refine", [DenseCRF(**KERNELS, iterations=2), learned()], ids=["DenseCRF", "CRFAsRNN"])
@pytest.mark.parametrize("training", [True, False])
def test_the_refiner_gets_image_and_upsampled_planes_at_the_images_own_size(refine, training):
    module = fcn(refine=refine).train(training)
    image = batch()["image"]
    with torch.no_grad():
        planes = module.network.planes(image)["segmentation"]
        # batch norm's statistics move, what it puts out in training does not depend on them
        raw = module.network.planes_from(module.network.maps(image), SIZE)["segmentation"]
        expected = refine.refined(F.interpolate(raw, size=(64, 64), mode="bilinear")[..., :40, :50], image)
    assert planes.shape == (2, CLASSES, 64, 64)
    torch.testing.assert_close(planes[..., :40, :50], expected)
    assert not torch.allclose(expected, F.interpolate(raw, size=(64, 64), mode="bilinear")[..., :40, :50], atol=0.1)


def test_losses_predictions_and_evidence_are_those_of_the_refined_planes():
    module = fcn(refine=learned()).eval()
    data = batch()
    with torch.no_grad():
        refined = module.network(data["image"])["segmentation"]
        step = module._losses("val", module.network.planes(data["image"]), data)
        answer = module(data["image"])["segmentation"]
        evidence = NetworkEvidence(module.network, list(module.tasks))(data["image"])["segmentation"]
        plain = fcn().eval()(data["image"])["segmentation"]
    known = data["segmentation"].masked_fill(data["segmentation"] == 255, 0).long()
    losses = F.cross_entropy(refined, known, reduction="none")[data["segmentation"] != 255]
    torch.testing.assert_close(step.total, losses.mean())
    assert torch.equal(answer.long(), refined.argmax(1))
    torch.testing.assert_close(evidence, refined.softmax(1))
    assert not torch.equal(answer, plain)


def test_gradients_reach_every_parameter_of_the_network_and_of_the_refiner():
    module = fcn(refine=learned())
    module.train()
    planes = module.network.planes(batch()["image"])
    module._losses("train", planes, batch()).total.backward()
    names = [name for name, parameter in module.network.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert names == []
    assert sum(p.numel() for p in module.network.refine.parameters()) == 3 * CLASSES**2


@pytest.mark.parametrize("share_decoder", [False, True])
def test_other_tasks_and_auxiliary_planes_are_left_as_they_are(share_decoder):
    options = {"auxiliary": PointwiseDecoder, "share_decoder": share_decoder}
    module = fcn([Segmentation(CLASSES), Depth()], learned(), **options).train()
    image = batch()["image"]
    with torch.no_grad():
        planes = module.network.planes(image)
        raw = module.network.planes_from(module.network.maps(image), SIZE)
    assert set(planes) == {"segmentation", "depth", "segmentation/auxiliary", "depth/auxiliary"}
    for name in set(planes) - {"segmentation"}:
        torch.testing.assert_close(planes[name], raw[name])
    assert planes["segmentation"].shape[-2:] == (64, 64)


def test_a_single_plane_is_refined_as_the_score_of_one_label_of_two():
    task = Segmentation(2, mode="binary")
    module = fcn([task], learned(2)).eval()
    image = batch()["image"]
    with torch.no_grad():
        plane = module.network(image)["segmentation"]
        raw = fcn([task]).eval().network(image)["segmentation"]
        both = module.network.refine(torch.cat([torch.zeros_like(raw), raw], 1), image)
    torch.testing.assert_close(plane.sigmoid(), both[:, 1:])


@pytest.mark.parametrize(
    ("tasks", "refine", "message"),
    [
        ([Depth()], learned(), "CRFAsRNN refines labels; the tasks are depth, of which none has labels"),
        ([Segmentation(3, mode="multilabel")], DenseCRF(), "none has labels that exclude each other"),
        ([Segmentation(5)], learned(3), "made for 3 labels, the task 'segmentation' has 5. Give it 5"),
        ([Segmentation(2, mode="binary")], learned(3), "the task 'segmentation' has 2"),
    ],
)
def test_what_it_cannot_refine_is_refused(tasks, refine, message):
    with pytest.raises(ConfigurationError, match=message):
        DensePredictor(ResNetEncoder("resnet18"), FCNDecoder, tasks, refine=refine)


def test_half_precision_around_it_does_not_reach_into_it():
    module = fcn(refine=learned()).train()
    image = batch()["image"]
    with torch.autocast("cpu", torch.bfloat16):
        maps = module.network.maps(image)
        raw = module.network.planes_from(maps, SIZE)
        planes = module.network.refined(raw, image)["segmentation"]
    assert raw["segmentation"].dtype == torch.bfloat16
    assert planes.dtype == torch.float32
    torch.testing.assert_close(planes, module.network.refined(raw, image)["segmentation"])


def test_it_starts_from_an_fcns_checkpoint_trains_end_to_end_and_reloads(tmp_path, capsys):
    fcn_run = trainer(tmp_path)
    loader = DataLoader([sample(index) for index in range(4)], 2)
    before = fcn()
    fcn_run.fit(before, loader)
    fcn_run.save_checkpoint(tmp_path / "fcn.ckpt")

    module = DensePredictor(
        ResNetEncoder("resnet18"), FCNDecoder, [Segmentation(CLASSES)], refine=learned(),
        init_from=tmp_path / "fcn.ckpt", lr_scales={"refine.*_weights": 100, "refine.compatibility": 10},
    )  # fmt: skip
    assert "refine.compatibility" in capsys.readouterr().out
    for name, value in before.network.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], value)
    rates = {n: g["lr"] for g in module.build_optimizer().param_groups for n in g["names"] if n.startswith("refine")}
    assert rates == pytest.approx(
        {"refine.smooth_weights": 0.03, "refine.appearance_weights": 0.03, "refine.compatibility": 0.003}
    )

    started = {name: value.clone() for name, value in module.network.state_dict().items()}
    run = trainer(tmp_path)
    run.fit(module, loader, DataLoader([sample(9)], 1))
    assert {"val/segmentation/miou", "val/loss"} <= set(run.callback_metrics)
    moved = [n for n, v in module.network.named_parameters() if not torch.equal(v, started[n])]
    assert moved == [name for name, _ in module.network.named_parameters()]

    run.save_checkpoint(tmp_path / "crf.ckpt")
    image = batch()["image"]
    answer = module.eval()(image)["segmentation"]
    again = DensePredictor.load_from_checkpoint(tmp_path / "crf.ckpt").eval()
    assert torch.equal(again(image)["segmentation"], answer)
    assert arguments_of(again.network.refine) == arguments_of(module.network.refine)
    for file in ("crf.ckpt", "crf.safetensors"):
        if file.endswith("safetensors"):
            export_safetensors(module.network, list(module.tasks), tmp_path / file)
        found = Predictor.load(tmp_path / file, as_trained=False)(image[0])["segmentation"]
        assert torch.equal(found, answer[0])


def test_training_pulls_the_matrices_towards_what_the_labels_show():
    # neighbours of equal colour have equal labels here: both kernels and the compatibility gain weight
    crf = learned()
    data = batch(4)
    labels = data["segmentation"].masked_fill(data["segmentation"] == 255, 0).long()
    generator = torch.Generator().manual_seed(0)
    scores = F.one_hot(labels, CLASSES).movedim(-1, 1) + 1.5 * torch.randn(4, CLASSES, *SIZE, generator=generator)
    optimizer = torch.optim.Adam(crf.parameters(), 0.1)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(crf.refined(scores, data["image"]), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert losses[0] < 0.5 * F.cross_entropy(scores, labels).item()


def test_describe_and_summary_count_it_without_computing_it():
    with torch.device("meta"):
        module = DensePredictor(ResNetEncoder("resnet18"), FCNDecoder, [Segmentation(CLASSES)], refine=learned())
        stage = trace(module.network.train(), torch.zeros(2, 3, 64, 64))[-1]
        memory = step_memory(module, 2, (64, 64))
        plain = DensePredictor(ResNetEncoder("resnet18"), FCNDecoder, [Segmentation(CLASSES)])
        without = step_memory(plain, 2, (64, 64))
    assert (stage.name, tuple(stage.tensor.shape), stage.parameters) == ("refine segmentation", (2, 3, 64, 64), 27)
    # two iterations of three matrices on all pixels, once each
    assert stage.macs == 2 * 3 * 2 * 64 * 64 * CLASSES**2
    assert memory.activations > without.activations
    assert memory.weights - without.weights == 4 * 27
    assert "refine: CRFAsRNN" in network_table(module.network)


def test_what_the_lattice_cannot_follow_is_refused_with_the_way_out():
    network = DenseNetwork(ResNetEncoder("resnet18"), partial(FCNDecoder), {"labels": 3}, refine=learned()).eval()
    with pytest.raises(ConfigurationError, match=r"CRFAsRNN cannot be exported.*--format safetensors"):
        DeployedNetwork(network, [Segmentation(3, name="labels")])
    with pytest.raises(ConfigurationError, match="looks at the whole image"):
        exact_margin(NetworkEvidence(network, [Segmentation(3, name="labels")]))
