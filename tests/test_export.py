"""Exported files: they answer as the network does at any size, without densepred, and their report tells the truth."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from sklearn.metrics import jaccard_score

from densepred.cli import main
from densepred.commands.export import _data, _samples, real_images, whole_folder
from densepred.data.rendering.scenes import CLASSES
from densepred.data.rooms import RoomsDataModule
from densepred.decoders.fcn import FCNDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference import Predictor
from densepred.inference.checkpoint import load_network
from densepred.inference.export import DeployedNetwork, export_program
from densepred.inference.export_parity import Agreement, latencies, random_images, scores
from densepred.inference.export_quantised import quantise
from densepred.inference.export_runtimes import NetworkRuntime, OnnxRuntime, ProgramRuntime, Runtime
from densepred.inference.onnx_file import export_onnx
from densepred.inference.safetensors_file import export_safetensors
from densepred.inference.trained_size import trained_short_side
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation
from experiments.benchmarks.export import contract
from tests.catalogue import DECODERS, ENCODERS, randomise_zeros

onnx = pytest.importorskip("onnx", reason="densepred[export]")
for package in ("onnxruntime", "onnxscript", "safetensors"):
    pytest.importorskip(package, reason="densepred[export]")

SIZES = [(1, 64, 64), (3, 75, 130), (1, 130, 99)]
NUMBERS = {"rtol": 1e-4, "atol": 1e-4}


def parts():
    return [Segmentation(list(CLASSES)), Depth(), Normals()]


def build(share_decoder=False, auxiliary=None):
    torch.manual_seed(0)
    return DensePredictor(
        UNetEncoder(widths=(4, 8, 12)), UNetDecoder, parts(), share_decoder=share_decoder, auxiliary=auxiliary
    ).eval()


@pytest.fixture(scope="module")
def module():
    return build(auxiliary=FCNDecoder)


@pytest.fixture(scope="module")
def checkpoint(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def onnx_file(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(module.network, list(module.tasks), path, also=["evidence", "planes"])
    return path


@pytest.fixture(scope="module")
def runtimes(onnx_file, program_file):
    return {"onnx": OnnxRuntime(onnx_file), "torch_export": ProgramRuntime(program_file)}


@pytest.fixture(scope="module")
def program_file(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    export_program(module.network, list(module.tasks), path)
    return path


def noise(batch, height, width, channels=3):
    return torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8)


def assert_same(answers, expected):
    assert (answers["segmentation"] == expected["segmentation"]).float().mean() >= 0.9999
    assert answers["segmentation"].dtype == torch.uint8
    for name in ("depth", "normals"):
        torch.testing.assert_close(answers[name], expected[name], **NUMBERS)


@pytest.mark.parametrize("size", SIZES)
def test_exported_files_answer_as_the_network_does_at_any_size_and_batch(module, runtimes, size):
    image = noise(*size)
    expected = NetworkRuntime(module.network, module.tasks)(image)
    for runtime in runtimes.values():
        assert_same(runtime(image), expected)


def test_the_onnx_file_runs_without_densepred_and_without_pytorch(module, onnx_file, tmp_path):
    image = noise(2, 75, 130)
    np.save(tmp_path / "image.npy", image.numpy())
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('densepred', 'torch')))\n"
        "import numpy as np, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(onnx_file)!r}, providers=['CPUExecutionProvider'])\n"
        f"names = [output.name for output in session.get_outputs()]\n"
        f"answers = session.run(names, {{'image': np.load({str(tmp_path / 'image.npy')!r})}})\n"
        f"np.savez({str(tmp_path / 'answers.npz')!r}, **dict(zip(names, answers)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    answers = {name: torch.from_numpy(answer) for name, answer in np.load(tmp_path / "answers.npz").items()}
    assert_same(answers, NetworkRuntime(module.network, module.tasks)(image))


@pytest.mark.slow
def test_the_program_runs_without_densepred(module, program_file, tmp_path):
    image = noise(1, 64, 75)
    torch.save(image, tmp_path / "image.pt")
    code = (
        "import sys; sys.modules['densepred'] = None\n"
        "import torch\n"
        f"answers = torch.export.load({str(program_file)!r}).module()(torch.load({str(tmp_path / 'image.pt')!r}))\n"
        f"torch.save(dict(answers), {str(tmp_path / 'answers.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    assert_same(torch.load(tmp_path / "answers.pt"), NetworkRuntime(module.network, module.tasks)(image))


def test_the_onnx_file_says_what_goes_in_and_what_comes_out(onnx_file):
    model = onnx.load(onnx_file)
    (image,) = model.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dimensions = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert dimensions == ["batch", 3, "height", "width"]
    shapes = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    assert shapes["segmentation"] == ["batch", "height", "width"]
    assert shapes["depth"] == ["batch", 1, "height", "width"]
    said = json.loads({entry.key: entry.value for entry in model.metadata_props}["densepred"])
    assert said["tasks"]["segmentation"]["classes"] == list(CLASSES)
    assert said["outputs"] == list(shapes)


def test_evidence_and_planes_are_outputs_on_request(module, onnx_file):
    image = noise(1, 66, 70)
    answers = OnnxRuntime(onnx_file)(image)
    with torch.no_grad():
        planes = module.network(image)
    torch.testing.assert_close(answers["depth_planes"], planes["depth"], **NUMBERS)
    probabilities = answers["segmentation_evidence"]
    torch.testing.assert_close(probabilities, planes["segmentation"].softmax(1), **NUMBERS)
    with pytest.raises(ConfigurationError, match="logits"):
        DeployedNetwork(module.network, module.tasks, also=["logits"])


def test_exporting_leaves_the_network_as_it_was(module, tmp_path):
    before = {key: value.clone() for key, value in module.network.state_dict().items()}
    DeployedNetwork(module.network, module.tasks)
    assert module.network.auxiliary_decoders is not None
    assert all(parameter.requires_grad for parameter in module.network.parameters())
    assert all(torch.equal(value, module.network.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("share_decoder", [False, True])
def test_safetensors_rebuild_the_network_without_the_checkpoint(tmp_path, share_decoder):
    module = build(share_decoder, auxiliary=FCNDecoder)
    path = tmp_path / "model.safetensors"
    export_safetensors(module.network, module.tasks, path)
    network, tasks = load_network(path)
    assert network.auxiliary_decoders is None
    image = noise(1, 65, 70)
    for name, value in NetworkRuntime(module.network, module.tasks)(image).items():
        torch.testing.assert_close(Predictor.load(path, "cpu")(image[0])[name], value[0])
    assert [task.name for task in tasks] == ["segmentation", "depth", "normals"]
    assert tasks[0].classes == list(CLASSES)


def test_safetensors_remember_the_size_of_the_training(module, tmp_path):
    path = tmp_path / "model.safetensors"
    export_safetensors(module.network, module.tasks, path, {"class_path": "Rooms", "init_args": {"size": [120, 160]}})
    assert trained_short_side(path) == 120


def test_safetensors_from_elsewhere_are_refused(module, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    with pytest.raises(ConfigurationError, match="no file"):
        load_network(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ConfigurationError, match="cannot be read as a network"):
        load_network(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ConfigurationError, match="cannot be read as a network"):
        load_network(path)
    for stored in ("[]", "{", '{"hyper_parameters": 3}'):
        save_file({"a": torch.zeros(1)}, path, metadata={"densepred": stored})
        with pytest.raises(ConfigurationError, match="cannot be read as a network"):
            load_network(path)
    foreign = {part: {"class_path": "os.system"} for part in ("encoder", "decoder", "tasks")}
    save_file({"a": torch.zeros(1)}, path, metadata={"densepred": json.dumps({"hyper_parameters": foreign})})
    with pytest.raises(ConfigurationError, match=r"wants the class os\.system"):
        load_network(path)
    with pytest.raises(ConfigurationError, match=r"called \.safetensors"):
        export_safetensors(module.network, module.tasks, tmp_path / "model.bin")


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_eight_bits_are_smaller_and_nearly_agree(module, onnx_file, tmp_path, mode):
    path = tmp_path / "int8.onnx"
    images = [noise(1, 64, 80)[0] for _ in range(2)]
    quantise(onnx_file, path, mode, images)
    exact, coarse = OnnxRuntime(onnx_file)(images[0][None]), OnnxRuntime(path)(images[0][None])
    distance = (exact["depth"] - coarse["depth"]).abs().mean() / exact["depth"].mean()
    assert 0 < distance < 0.05
    layers = {node.op_type for node in onnx.load(path).graph.node}
    assert layers & {"ConvInteger", "QLinearConv", "QuantizeLinear"}


def test_static_ranges_need_images(onnx_file, tmp_path):
    with pytest.raises(ConfigurationError, match="Give --images or --data"):
        quantise(onnx_file, tmp_path / "int8.onnx", "static")
    assert list(tmp_path.iterdir()) == []


def test_agreement_is_the_share_of_equal_labels_and_the_largest_distance():
    labels = torch.zeros(1, 100, 100, dtype=torch.uint8)
    other = labels.clone()
    other[0, 0, 0] = 1
    found = Agreement(Segmentation(2))
    found.update(labels, other)
    assert found.equal == 0.9999
    assert found.holds
    other[0, 0, 1] = 1
    found.update(labels, other)
    assert found.equal == pytest.approx(1 - 3 / 20000)
    assert not found.holds
    metres = Agreement(Depth())
    metres.update(torch.tensor([10.0]), torch.tensor([10.0005]))
    assert metres.worst == pytest.approx(5e-5, rel=1e-2)
    metres.update(torch.tensor([10.0]), torch.tensor([math.nan]))
    assert not metres.holds
    size = Agreement(Depth())
    size.update(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
    assert not size.holds


class Constant(Runtime):
    def __init__(self, answers):
        self.answers = answers

    def __call__(self, image):
        return self.answers


def test_metrics_are_those_of_what_a_file_predicts():
    target, predicted = torch.randint(0, 3, (2, 1, 8, 8), dtype=torch.uint8)
    found = scores([Segmentation(3), Depth()], Constant({"segmentation": predicted}),
                   [{"image": noise(1, 8, 8), "segmentation": target}])  # fmt: skip
    expected = jaccard_score(target.flatten(), predicted.flatten(), average="macro")
    assert found["segmentation/miou"] == pytest.approx(expected, abs=1e-6)
    assert not [key for key in found if key.startswith("depth")]


def test_latencies_are_percentiles_of_timed_calls(monkeypatch):
    warming_up = [0.0, 0.0]  # each call that is not timed asks once
    timed = np.cumsum([x for milliseconds in range(1, 21) for x in (0.0, milliseconds)]) / 1e3
    ticks = iter([*warming_up, *timed])
    monkeypatch.setattr("densepred.inference.export_parity.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    found = latencies({"it": Constant({})}, noise(1, 8, 8), calls=20)["it"]
    assert (found.p50, found.p95, found.calls) == (10.5, pytest.approx(19.05, abs=0.01), 20)


def test_random_images_are_of_sizes_that_need_padding_and_of_such_that_do_not():
    for multiple in (1, 8, 32):
        sizes = [image.shape[-2:] for image in random_images(3, multiple)]
        assert all(min(size) > 32 for size in sizes)
    rests = {(height % 32 == 0, width % 32 == 0) for height, width in sizes}
    assert {(True, True), (False, False)} <= rests


def export(checkpoint, output, *more):
    return main(["export", "--ckpt_path", str(checkpoint), "--output", str(output), "--size", "64", "64",
                 "--calls", "2", *more])  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_files_and_a_report_with_metrics(checkpoint, tmp_path, capsys):
    output = tmp_path / "exported net"
    data = ["--data", "RoomsDataModule", "--data.size", "[64, 96]", "--data.train", "2", "--data.val", "2",
            "--data.num_workers", "0"]  # fmt: skip
    assert export(checkpoint, output, "--format", "onnx", "safetensors", "--int8", "static", *data) == 0
    assert {path.name for path in output.iterdir()} == {
        "model.onnx", "model.int8_static.onnx", "model.safetensors", "export.json"
    }  # fmt: skip
    report = json.loads((output / "export.json").read_text())
    files = report["files"]
    assert files["model.onnx"]["bytes"] == (output / "model.onnx").stat().st_size
    assert files["model.onnx"]["agreement"]["real"]["segmentation"]["pixels"] == 2 * 64 * 96
    for key in ("segmentation/miou", "depth/rmse", "normals/mean_angle"):
        assert files["model.onnx"]["metrics"][key] == pytest.approx(files["checkpoint"]["metrics"][key], rel=1e-4)
        assert key in files["model.int8_static.onnx"]["metrics"]
    printed = capsys.readouterr().out
    assert "Every file agrees" in printed
    assert "segmentation/miou" in printed


def test_data_of_other_classes_are_refused(monkeypatch):
    data = RoomsDataModule(size=(64, 96), train=1, val=1)
    monkeypatch.setattr("densepred.commands.check_data.build_data", lambda *_: data)
    arguments = SimpleNamespace(config=[], options=["--data"], allow=[])
    with pytest.raises(ConfigurationError, match="has 3 classes"):
        _data(arguments, [Segmentation(3)])
    assert _data(arguments, [Segmentation(list(CLASSES))]) is data


def test_files_are_compared_on_samples_as_they_are_evaluated():
    data = RoomsDataModule(size=(64, 96), train=3, val=2)
    assert [len(list(_samples(data, split, 2))) for split in ("train", "val")] == [2, 2]
    (batch,) = _samples(data, "val", 1)
    data.setup("validate")
    assert torch.equal(batch["image"][0], data.datasets["val"][0]["image"])
    assert batch["segmentation"].shape == (1, 64, 96)


def test_the_command_ends_with_1_where_a_file_disagrees(checkpoint, tmp_path, monkeypatch, capsys):
    class Wrong(NetworkRuntime):
        def __init__(self, path, allow=()):
            super().__init__(*load_network(path, allow))

        def __call__(self, image):
            answers = super().__call__(image)
            return answers | {"depth": answers["depth"] * 1.001}

    monkeypatch.setattr("densepred.commands.export.SafetensorsRuntime", Wrong)
    assert export(checkpoint, tmp_path / "out", "--format", "safetensors") == 1
    assert "NOT every file agrees" in capsys.readouterr().out


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path):
    with whole_folder(tmp_path / "out") as folder:
        (folder / "export.json").write_text("{}")
        (folder / "old.onnx").write_text("")
    with whole_folder(tmp_path / "out") as folder:
        (folder / "export.json").write_text("{}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["export.json"]
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "out") as folder:
        raise OSError("disk full")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "export.json"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("all of it")
    with pytest.raises(ConfigurationError, match="no folder of densepred export"), whole_folder(tmp_path / "own"):
        pass
    assert (tmp_path / "own" / "thesis.tex").exists()


def test_a_missing_package_is_named_with_how_to_install_it(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigurationError, match=r"needs onnx.*pip install 'densepred\[export\]'"):
        export_onnx(module.network, module.tasks, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_photos_of_16_bits_are_compared_as_an_exported_file_takes_them(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "deep.png"), np.full((40, 50, 3), 257 * 100, np.uint16))
    (image,) = real_images([tmp_path], channels=3)
    assert image.dtype == torch.uint8
    assert image.unique().tolist() == [100]


def test_a_network_that_cannot_be_traced_is_refused_with_the_reason(tmp_path):
    class Branching(FCNDecoder):
        def forward(self, features):
            planes = super().forward(features)
            return planes if planes.sum() > 0 else -planes

    network = DenseNetwork(UNetEncoder(widths=(4, 8, 12)), Branching, {"depth": 1})
    with pytest.raises(ConfigurationError, match=r"torch\.export cannot express this network.*(?s:.)*safetensors"):
        export_program(network, [Depth()], tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


# what is hard to export: paddings before dilated poolings, sizes of their own, attention, unpooling, pyramids
HARD = {
    ("vgg11 pool OS8", "PSPNet"): 0,
    ("unet unpadded", "U-Net"): 0,
    ("timm vit", "DPT"): 1,  # its coarsest map is a single cell there
    ("unet", "DeconvNet"): 4,  # its fully connected layers leave a single cell
}
"""And how many of the benchmark's sizes a torch.export program refuses."""


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "decoder"), HARD)
def test_encoders_and_decoders_that_compute_sizes_are_exported_for_all_sizes(encoder, decoder):
    network = randomise_zeros(DenseNetwork(ENCODERS[encoder](), DECODERS[decoder], {"labels": 3})).eval()
    found = contract(network)
    assert found.refused == ""
    assert len(found.sizes) <= HARD[encoder, decoder]
    assert found.onnx < 1e-4
    assert found.program < 1e-4


def test_configurations_in_safetensors_hold_data_alone(module, tmp_path):
    from densepred.inference.safetensors_file import read_stored

    path = tmp_path / "model.safetensors"
    export_safetensors(module.network, module.tasks, path, {"class_path": "Rooms"})
    assert yaml.safe_load(read_stored(path)["config"]) == {"data": {"class_path": "Rooms"}}
