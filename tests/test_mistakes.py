"""What a user reads when something is wrong on the command line: one short message, never a traceback."""

from pathlib import Path

import pytest
import yaml

from densepred.cli import main
from tests.test_cli import ROOMS, config  # noqa: F401 - a fixture


def fit(*arguments: str) -> list[str]:
    return ["fit", "--config", "rooms.yaml", "--trainer.max_epochs", "1", *arguments]


@pytest.fixture
def told(config, capsys):  # noqa: F811
    """Runs a command line that must fail; gives the exit status and what was printed."""

    def run(arguments: list[str]) -> tuple[int, str]:
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = stop.code
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return status, message

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (fit("--trainer.max_epoch", "3"), "unrecognized arguments: --trainer.max_epoch"),
        (fit("--data.valid", "3"), "'valid' is not accepted"),
        (fit("--model.optimizer.lrr", "3"), "'lrr' is not accepted"),
        (fit("--model.decoder", "UnetDecoder"), "UnetDecoder"),
        (fit("--model.encoder.name", "resnet19"), "'resnet18', 'resnet34'"),
        (fit("--trainer.max_epochs", "three"), "three"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--config", "nowhere.yaml", "--ckpt_path", "last"], "nowhere.yaml"),
        (["fit"], "Give --config FILE"),
        (["test"], "--ckpt_path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_misspelt_option_ends_in_a_few_lines_that_name_it(told, arguments: list[str], words: str):
    status, message = told(arguments)
    assert status == 2
    assert words in message
    assert "densepred fit --help" in message or "densepred --help" in message
    assert "NoneType" not in message
    assert len(message.splitlines()) <= 8


def test_a_checkpoint_that_is_not_there_is_named(told):
    status, message = told(fit("--ckpt_path", "nowhere.ckpt"))
    assert status == 1
    assert "nowhere.ckpt: there is no such file" in message


def test_a_network_that_has_not_been_trained_is_not_measured(told):
    status, message = told(["test", "--config", "rooms.yaml"])
    assert status == 1
    assert "densepred test needs --ckpt_path" in message


def test_resuming_with_another_network_is_refused_before_the_first_step(told):
    assert main(fit()) == 0
    status, message = told(fit("--ckpt_path", "last", "--model.encoder.name", "resnet34"))
    assert status == 1
    assert "last.ckpt holds another network" in message
    assert "96 not in the checkpoint, such as network.encoder.layer1.2.conv1.weight" in message
    status, message = told(fit("--ckpt_path", "last", "--model.decoder.widths", "[16, 16, 8, 4]"))
    assert status == 1
    assert "of another shape" in message
    assert [path.name for path in Path("runs").iterdir()] == ["version_0"]


def test_a_folder_that_cannot_be_written_is_named(told):
    status, message = told(fit("--trainer.default_root_dir", "rooms.yaml/runs"))
    assert status == 1
    assert "rooms.yaml/runs" in message
    assert "trainer.default_root_dir" in message


def test_an_accelerator_that_is_not_there_is_named(told):
    status, message = told(fit("--trainer.accelerator", "mps"))
    assert status == 1
    assert "not available" in message


def test_a_test_leaves_the_training_s_configuration_as_it_was(config, capsys):  # noqa: F811
    main(fit())
    run = Path("runs/version_0")
    before = (run / "config.yaml").read_text()
    capsys.readouterr()
    main(["test", "--ckpt_path", "last"])
    assert (run / "config.yaml").read_text() == before
    assert yaml.safe_load((run / "test.yaml").read_text())["ckpt_path"].endswith("last.ckpt")
    printed = capsys.readouterr().out
    assert printed.count("constant predictor") == 1
    assert "Test metric" not in printed  # Lightning's own table of the same numbers


def test_a_configuration_may_name_the_checkpoint_to_continue(config):  # noqa: F811
    main(fit())
    config.write_text(yaml.safe_dump({**ROOMS, "ckpt_path": "last"}))
    main(["fit", "--config", "rooms.yaml"])
    assert [path.name for path in Path("runs").iterdir()] == ["version_0"]
    epochs = (Path("runs/version_0/panels")).glob("*.png")
    assert {path.name for path in epochs} == {"epoch_001.png", "epoch_002.png"}


def test_a_run_says_what_it_trains_and_nothing_about_other_products(config, capsys, caplog, recwarn):  # noqa: F811
    main(fit("--trainer.enable_model_summary", "true"))
    assert "encoder: ResNetEncoder" in capsys.readouterr().out
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert [word for word in ("Tip", "litlogger", "TPU", "LeafSpec") if word in said] == []
