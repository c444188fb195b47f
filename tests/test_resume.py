import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from densepred.callbacks.checkpoints import WholeFileCheckpointIO
from densepred.errors import ConfigurationError
from densepred.loggers import RunLogger, drop_rows_after
from densepred.resume import checkpoint_config, find_checkpoint, keep_configured_rates
from densepred.schedules import PolyLR


def trained(lr, steps=4, total=10, **options):
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [p], "lr": lr * scale} for p, scale in zip(parameters, (0.1, 1), strict=True)], **options
    )
    schedule = PolyLR(optimizer, total)
    for _ in range(steps):
        optimizer.step()
        schedule.step()
    return optimizer, schedule


def test_a_resumed_run_continues_the_schedule_at_the_configured_rate():
    optimizer, schedule = trained(0.5, momentum=0.9, weight_decay=0.1)
    checkpoint = {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [schedule.state_dict()]}
    configured, fresh = trained(0.05, steps=0, momentum=0.5, weight_decay=0.0)
    groups = [{"params": g["params"], "lr": lr} for g, lr in zip(configured.param_groups, (0.005, 0.05), strict=True)]
    keep_configured_rates(checkpoint, torch.optim.SGD(groups, momentum=0.5))
    configured.load_state_dict(checkpoint["optimizer_states"][0])
    fresh.load_state_dict(checkpoint["lr_schedulers"][0])
    uninterrupted, its_schedule = trained(0.05, momentum=0.5)
    for _ in range(3):
        assert [g["lr"] for g in configured.param_groups] == pytest.approx(
            [g["lr"] for g in uninterrupted.param_groups]
        )
        for optimizer, schedule in ((configured, fresh), (uninterrupted, its_schedule)):
            optimizer.step()
            schedule.step()
    assert [g["momentum"] for g in configured.param_groups] == [0.5, 0.5]
    assert [g["weight_decay"] for g in configured.param_groups] == [0, 0]


def write(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    WholeFileCheckpointIO().save_checkpoint(content, path)


def test_last_and_best_mean_the_newest_run_that_has_them(tmp_path):
    write(tmp_path / "version_0" / "checkpoints" / "best.ckpt")
    write(tmp_path / "version_1" / "checkpoints" / "best.ckpt")
    write(tmp_path / "version_2" / "checkpoints" / "last.ckpt")
    assert find_checkpoint("best", tmp_path).parts[-3] == "version_1"
    assert find_checkpoint("last", tmp_path).parts[-3] == "version_2"
    with pytest.raises(ConfigurationError, match=r"no best-depth.ckpt in .*There are: best, last"):
        find_checkpoint("best-depth", tmp_path)
    with pytest.raises(ConfigurationError, match=r"nowhere.ckpt: there is no such file"):
        find_checkpoint(str(tmp_path / "nowhere.ckpt"), tmp_path)


def test_a_checkpoint_tells_its_configuration_whether_trained_from_yaml_or_from_python(tmp_path):
    config = {"model": {"class_path": "M"}, "data": {"class_path": "D"}, "ckpt_path": "x"}
    write(tmp_path / "a.ckpt", config=yaml.safe_dump(config))
    assert checkpoint_config(tmp_path / "a.ckpt") == {"model": {"class_path": "M"}, "data": {"class_path": "D"}}
    write(tmp_path / "b.ckpt", hyper_parameters={"_class_path": "M", "_instantiator": "x", "scale": 2})
    assert checkpoint_config(tmp_path / "b.ckpt") == {"model": {"class_path": "M", "init_args": {"scale": 2}}}


def test_a_cut_checkpoint_is_refused_by_name(tmp_path):
    write(tmp_path / "cut.ckpt", state=torch.zeros(1000))
    content = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigurationError, match=r"cut.ckpt cannot be read as a checkpoint"):
        checkpoint_config(tmp_path / "cut.ckpt")


def test_a_failed_save_leaves_the_previous_checkpoint_and_no_litter(tmp_path):
    path = tmp_path / "last.ckpt"
    write(path, step=1)
    with pytest.raises(Exception, match="pickle"):
        write(path, step=2, broken=lambda: None)
    assert torch.load(path, weights_only=True)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_continued_run_keeps_the_rows_before_its_checkpoint_and_logs_the_later_ones_once(tmp_path):
    first = RunLogger(tmp_path)
    for step in range(5):
        first.log_metrics({"train/loss": float(step)}, step)
    first.save()
    metrics = tmp_path / "version_0" / "metrics.csv"
    drop_rows_after(metrics, step=3)
    again = RunLogger(tmp_path, version=0)
    for step in range(3, 6):
        again.log_metrics({"train/loss": 10.0 + step, "val/loss": 1.0}, step)
    again.save()
    assert [(row["step"], row["train/loss"]) for row in rows(metrics)] == [
        ("0", "0.0"), ("1", "1.0"), ("2", "2.0"), ("3", "13.0"), ("4", "14.0"), ("5", "15.0"),
    ]  # fmt: skip
    assert RunLogger(tmp_path).log_dir.endswith("version_1")


def test_runs_started_together_get_a_folder_each(tmp_path):
    loggers = [RunLogger(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda logger: logger.log_dir, loggers))
    assert sorted(Path(folder).name for folder in folders) == [f"version_{i}" for i in range(8)]
    assert [logger.log_dir for logger in loggers] == folders
