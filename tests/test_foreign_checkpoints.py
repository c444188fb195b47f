"""A checkpoint from elsewhere builds nothing that the user does not vouch for, and reads no code."""

import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from densepred.cli import main
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference.predictor import Predictor
from densepred.module import DensePredictor
from densepred.recipe import Recorded, rebuilt, refuse_foreign
from densepred.resume import checkpoint_config, read_checkpoint
from densepred.tasks.depth import Depth
from densepred.yaml_text import read_yaml

ENCODER = {"class_path": "densepred.encoders.resnet.ResNetEncoder", "init_args": {"name": "resnet18"}}
DECODER = {"class_path": "densepred.decoders.pointwise.PointwiseDecoder"}
TASK = {"class_path": "densepred.tasks.depth.Depth"}
LAMBDA = "pytorch_lightning.callbacks.LambdaCallback"
ROOMS = {
    "class_path": "densepred.data.rooms.RoomsDataModule",
    "init_args": {"size": [48, 64], "train": 2, "val": 2, "test": 2, "batch_size": 2, "num_workers": 0},
}
MINE = """
from pathlib import Path
from densepred.decoders.pointwise import PointwiseDecoder

Path("imported").touch()


class MyDecoder(PointwiseDecoder):
    def __init__(self, spec, out_channels: int) -> None:
        Path("built").touch()
        super().__init__(spec, out_channels)


def make(*anything, **more):
    Path("called").touch()
"""


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    """A working folder with a module of the user's own, which notes when it is imported, and a checkpoint to change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = f"mine_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(MINE)
    module = DensePredictor(ResNetEncoder("resnet18"), PointwiseDecoder, [Depth()])
    weights = module.state_dict()

    def write(file: str = "theirs.ckpt", trainer: dict | None = None, data: dict | None = None, **model) -> str:
        arguments = {"encoder": ENCODER, "decoder": DECODER, "tasks": [TASK]} | model
        config = {
            "trainer": {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_progress_bar": False}
            | (trainer or {}),
            "model": {"class_path": "densepred.module.DensePredictor", "init_args": arguments},
            "data": data or ROOMS,
        }
        hyperparameters = {"_class_path": "densepred.module.DensePredictor",
                           "_instantiator": "pytorch_lightning.cli.instantiate_module", **arguments}  # fmt: skip
        torch.save({"state_dict": weights, "hyper_parameters": hyperparameters, "config": yaml.safe_dump(config),
                    "pytorch-lightning_version": "2.6.0", "global_step": 0, "epoch": 0}, file)  # fmt: skip
        return file

    write.module = name
    return write


def nothing_ran() -> bool:
    return not any(Path(trace).exists() for trace in ("imported", "built", "called"))


VERBS = {
    "test": ["test", "--ckpt_path"],
    "validate": ["validate", "--ckpt_path"],
    "fit": ["fit", "--ckpt_path"],
    "describe": ["describe", "--quick"],
    "check-data": ["check-data", "--config"],
    "samples": ["samples", "--config"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_class_of_nobody_is_refused_by_every_verb_before_it_is_imported(strangers, verb, capsys):
    foreign = f"{strangers.module}.MyDecoder"
    decoder = {"class_path": foreign}
    data = {**ROOMS, "init_args": {**ROOMS["init_args"], "train_transforms": [decoder]}}
    status = main([*VERBS[verb], strangers(decoder=decoder, data=data)])
    message = capsys.readouterr().err
    assert status == 1
    assert f"--allow {foreign}" in message
    assert "Traceback" not in message
    assert nothing_ran()


@pytest.mark.parametrize(
    "trainer",
    [
        {"callbacks": [{"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "called"]}}]},
        {"logger": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "called"]}}},
        {"plugins": [{"class_path": "MODULE.make"}]},
        {"callbacks": ["MODULE.make"]},
        {"callbacks": [{"class_path": LAMBDA, "init_args": {"on_fit_start": "MODULE.make"}}]},
        {"callbacks": [{"class_path": LAMBDA, "init_args": {"on_fit_start": "os.system"}}]},
    ],
    ids=["callback", "logger", "plugin", "a string", "a function", "os"],
)  # fmt: skip
def test_trainers_of_strangers_run_nothing_of_other_packages(strangers, trainer, capsys):
    plain = yaml.safe_load(yaml.safe_dump(trainer).replace("MODULE", strangers.module))
    try:
        status = main(["fit", "--ckpt_path", strangers(trainer=plain)])
    except SystemExit as stop:  # the parser's own
        status = stop.code
    assert status in (1, 2)
    assert "Traceback" not in capsys.readouterr().err
    assert nothing_ran()


@pytest.mark.parametrize(
    ("place", "value"), [("decoder", "MODULE.make"), ("optimizer", "MODULE.make"), ("balance", "part.yaml")]
)
def test_a_dotted_name_or_a_file_in_the_place_of_a_part_is_refused_too(strangers, place, value, capsys):
    Path("part.yaml").write_text(yaml.safe_dump({"class_path": f"{strangers.module}.MyDecoder"}))
    with pytest.raises(SystemExit) as stop:
        main(["test", "--ckpt_path", strangers(**{place: value.replace("MODULE", strangers.module)})])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert f"--allow {strangers.module}.{'make' if place != 'balance' else 'MyDecoder'}" in message
    assert "Traceback" not in message
    assert nothing_ran()


@pytest.mark.parametrize(
    "words", [["--allow", "MODULE"], ["--allow=MODULE.MyDecoder"], ["--model.decoder", "MODULE.MyDecoder"]]
)
def test_who_names_the_class_gets_it_built(strangers, words):
    words = [word.replace("MODULE", strangers.module) for word in words]
    file = strangers(decoder={"class_path": f"{strangers.module}.MyDecoder"})
    assert main(["describe", "--quick", file, *words]) == 0
    assert not nothing_ran()


def test_a_class_of_ones_own_is_tested_where_it_is_allowed(strangers):
    file = strangers(decoder={"class_path": f"{strangers.module}.MyDecoder"})
    assert main(["test", "--ckpt_path", file, "--allow", strangers.module, "--trainer.logger=false"]) == 0


def test_the_parser_trusts_the_users_own_files_again_afterwards(strangers, capsys):
    decoder = {"class_path": f"{strangers.module}.MyDecoder"}
    assert main(["describe", "--quick", strangers(decoder=decoder)]) == 1
    model = {"class_path": "DensePredictor", "init_args": {"encoder": ENCODER, "decoder": decoder, "tasks": [TASK]}}
    Path("own.yaml").write_text(yaml.safe_dump({"model": model}))
    assert main(["describe", "--quick", "own.yaml"]) == 0


@pytest.mark.parametrize("load", [DensePredictor.load_from_checkpoint, Predictor.load])
def test_python_refuses_and_allows_the_same(strangers, load):
    foreign = f"{strangers.module}.MyDecoder"
    file = strangers(decoder={"class_path": foreign})
    with pytest.raises(ConfigurationError, match=re.escape(f"allow=['{foreign}']")):
        load(file)
    assert nothing_ran()
    load(file, allow=[strangers.module])
    assert not nothing_ran()


def test_a_module_path_or_an_instantiator_of_strangers_is_refused(strangers):
    content = torch.load(strangers(), weights_only=True)
    for key, value in (("_class_path", f"{strangers.module}.make"), ("_instantiator", f"{strangers.module}.make")):
        torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], key: value}}, "other.ckpt")
        with pytest.raises(ValueError, match=r"allow|instantiator"):
            DensePredictor.load_from_checkpoint("other.ckpt")
        assert nothing_ran()


@pytest.mark.parametrize(
    "path", ["torch.hub.load", "torch.nn.Linear", "torch.utils.cpp_extension.load", "torch.nn.Identity"]
)
def test_of_torch_only_what_the_argument_asks_for_is_built(path):
    from densepred.encoders.base import Encoder

    with pytest.raises(ConfigurationError, match=r"is no part of a network|expected a subclass of Encoder"):
        rebuilt({"class_path": path, "init_args": {}}, "encoder", Encoder)


def test_python_objects_in_a_checkpoint_are_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return (subprocess.call, (["touch", "called"],))

    torch.save({"state_dict": {}, "config": Evil()}, "evil.ckpt")
    Path("evil.pkl").write_bytes(pickle.dumps({"state_dict": Evil()}))
    for file in ("evil.ckpt", "evil.pkl"):
        with pytest.raises(ConfigurationError, match="cannot be read as a checkpoint"):
            read_checkpoint(Path(file))
    assert nothing_ran()


def test_a_compressed_checkpoint_is_refused_for_it_could_hold_a_thousand_times_its_size(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(1_000_000)}}, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as whole,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for record in whole.infolist():
            small.writestr(record.filename, whole.read(record))
    assert read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["weight"].shape == (1_000_000,)
    with pytest.raises(ConfigurationError, match="its records are compressed"):
        read_checkpoint(tmp_path / "b.ckpt")


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>", b"\x80\x02}q\x00.", pickle.dumps([1, 2])])
def test_what_is_no_checkpoint_is_told_so(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"x\.ckpt (cannot be read as a checkpoint|holds a list|does not say)"):
        checkpoint_config(tmp_path / "x.ckpt")


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "stand for 12,345,679,021 values"),
        ("a: &a [*a]", "contains itself"),
        ("[" * 1500, "too deep"),
        ("x" * 5_000_000, "at most 4,194,304"),
    ],
    ids=["a thousand million laughs", "itself", "deep", "long"],
)
def test_a_configuration_that_stands_for_more_than_it_says_is_refused(tmp_path, text, words, capsys):
    with pytest.raises(ConfigurationError, match=words):
        read_yaml(text, "config")
    (tmp_path / "c.yaml").write_text(text)
    for arguments in (["describe", str(tmp_path / "c.yaml")], ["fit", "--config", str(tmp_path / "c.yaml")]):
        assert main(arguments) == 1
        message = capsys.readouterr().err
        assert "c.yaml" in message
        assert len(message) < 500


def test_shared_and_recursive_lists_in_a_recipe_are_refused():
    laughs = ["x"] * 10
    for _ in range(9):
        laughs = [laughs] * 10
    itself: list = []
    itself.append(itself)
    for plain, words in ((laughs, "describes 11,111,111,112 values"), (itself, "lies in itself")):
        with pytest.raises(ConfigurationError, match=words):
            refuse_foreign({"tasks": plain}, "theirs.ckpt")


def test_only_parts_of_the_asked_kind_are_built():
    class Part(Recorded):
        pass

    with pytest.raises(ConfigurationError, match="expected a subclass of Part"):
        rebuilt(TASK, "tasks", list[Part] | None)
