"""Where memory does not suffice, a run ends with what helps, in the values it has now."""

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from densepred.anatomy.memory import step_memory
from densepred.cli import main
from densepred.commands.arguments import import_parts
from densepred.commands.describe import build_module, configured_size, read_config
from densepred.commands.out_of_memory import where_memory_ended
from densepred.data.datamodule import DenseDataModule
from densepred.data.dataset import DenseDataset
from densepred.losses.base import Loss

TASK = {"class_path": "Segmentation", "init_args": {"classes": 11}}
CONFIG = {
    "seed_everything": 0,
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False,
                "num_sanity_val_steps": 0},
    "model": {
        "class_path": "DensePredictor",
        "init_args": {
            "encoder": {"class_path": "UNetEncoder", "init_args": {"widths": [4, 8]}},
            "decoder": {"class_path": "UNetDecoder", "init_args": {"widths": [4]}},
            "tasks": [TASK],
        },
    },
    "data": {"class_path": "RoomsDataModule",
             "init_args": {"size": [40, 56], "train": 8, "val": 2, "batch_size": 4, "num_workers": 0}},
}  # fmt: skip


class Greedy(Loss):
    """Asks for a petabyte, of the CPU or as a GPU would say it, in the training or in the evaluation."""

    def __init__(self, training: bool = True, device: bool = False) -> None:
        super().__init__()
        self.when, self.device = training, device

    def forward(self, output, target):
        if self.training == self.when:
            if self.device:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB.")
            torch.empty(10**15)
        return output.mean()


class Killed(DenseDataset):
    """The system ends the process that loads, as it does where memory is short."""

    def __len__(self):
        return 4

    def read(self, index):
        if torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": np.zeros((40, 40, 3), np.uint8), "segmentation": np.zeros((40, 40), np.uint8), "name": ""}


class KilledDataModule(DenseDataModule):
    def dataset(self, split, transforms):
        return Killed(transforms, self.seed)


def fit(tmp_path, monkeypatch, capsys, *options, loss=None, **data):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    if loss is not None:
        path = {"class_path": "tests.test_out_of_memory.Greedy", "init_args": loss}
        config["model"]["init_args"]["tasks"][0]["init_args"]["loss"] = path
    config["data"] |= data
    Path("config.yaml").write_text(yaml.safe_dump(config))
    status = main(["fit", "--config", "config.yaml", *options])
    text = capsys.readouterr().err
    assert status == 1
    assert "Traceback" not in text
    return text


def test_a_training_that_does_not_fit_says_what_is_planned_and_which_options_help(tmp_path, monkeypatch, capsys):
    text = fit(tmp_path, monkeypatch, capsys, loss={})
    assert re.search("lets this process have, does not suffice: training, step 0: .*allocate 4000000000000000", text)
    assert "--data.batch_size 2 (now 4) with --trainer.accumulate_grad_batches 2 (now 1)" in text
    assert "(now 40 x 56)" in text
    assert "--trainer.precision bf16-mixed (now 32-true)" in text
    assert "--trainer.callbacks+=Recompute" in text
    assert "--trainer.callbacks+=LargestBatch" in text
    planned = re.search(r"planned to take ([\d,]+) MiB, ([\d,]+) of them activations.*describe (\S+) --quick", text)
    assert planned is not None
    import_parts()
    config = read_config(Path(planned[3]))
    assert configured_size(config) == (40, 56)
    with torch.device("meta"):
        memory = step_memory(build_module(config, []), 4, (40, 56))
    assert planned.groups()[:2] == (f"{memory.total / 2**20:,.0f}", f"{memory.activations / 2**20:,.0f}")


def test_a_gpu_s_memory_is_told_apart_and_what_is_there_already_is_not_advised(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("densepred.commands.refusals.computes_bfloat16", lambda device: True)
    options = ["--trainer.precision=bf16-mixed", "--trainer.callbacks+=Recompute", "--data.batch_size=1"]
    text = fit(tmp_path, monkeypatch, capsys, *options, loss={"device": True})
    assert "step 0: Tried to allocate 2.00 GiB." in text
    assert "Recompute" not in text
    assert "precision" not in text
    assert "--data.batch_size" not in text
    assert "LargestBatch" in text


def test_an_evaluation_that_does_not_fit_needs_another_batch_alone(tmp_path, monkeypatch, capsys):
    text = fit(tmp_path, monkeypatch, capsys, loss={"training": False})
    assert "evaluation, step 2: " in text
    assert "--data.eval_batch_size 2 (now 4), which changes no metric" in text
    assert "Recompute" not in text
    assert "planned" not in text


@pytest.mark.timeout(60)
def test_a_loading_process_that_the_system_ended_is_answered_with_fewer_of_them(tmp_path, monkeypatch, capsys):
    data = {"class_path": "tests.test_out_of_memory.KilledDataModule", "init_args": {"batch_size": 2, "num_workers": 2}}
    text = fit(tmp_path, monkeypatch, capsys, **data)
    assert "A loading process was ended by the system" in text
    assert "--data.num_workers 1 (now 2)" in text


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (RuntimeError("CUDA error: out of memory"), "device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "device"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"), "device"),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that dataloader's "
                      "workers are out of shared memory."), "shared"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "shared"),
        (RuntimeError("DataLoader worker (pid(s) 4, 5) exited unexpectedly"), "worker"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), "process"),
        (MemoryError(), "process"),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Segmentation fault. "), None),
        (RuntimeError("CUDA error: device-side assert triggered"), None),
        (ValueError("memory"), None),
    ],
)  # fmt: skip
def test_errors_of_memory_are_told_from_others(error, where):
    assert where_memory_ended(error) == where
