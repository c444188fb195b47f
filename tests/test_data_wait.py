"""A loader that starves the network is named where people look, and told apart from one that has only begun."""

import re
import time

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from densepred.callbacks import data_wait
from densepred.callbacks.data_wait import DataWait
from densepred.callbacks.progress import EpochProgress
from densepred.callbacks.throughput import Throughput


class Watch:
    """Time passes when somebody says so, whatever else the machine does."""

    now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def perf_counter(self):
        return self.now


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(data_wait, "time", watch)
    return watch


class Slow(torch.utils.data.Dataset):
    """Samples that take their time: each, or the first of an epoch alone."""

    def __init__(self, watch: Watch, each: float, first: float = 0.0) -> None:
        self.watch, self.each, self.first = watch, each, first

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.watch.sleep(self.first if index == 0 and self.first else self.each)
        return {"image": torch.zeros(3, 4, 4)}


class Steps(pl.LightningModule):
    def __init__(self, watch: Watch, seconds: float) -> None:
        super().__init__()
        self.watch = watch
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seconds = seconds

    def training_step(self, batch, batch_idx):
        self.watch.sleep(self.seconds)
        return self.weight**2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lines(tmp_path, capsys, data, seconds, callbacks=None):
    trainer = pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_checkpointing=False, max_epochs=3,
        callbacks=[Throughput(), EpochProgress(bar=False)] if callbacks is None else callbacks,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Steps(data.watch, seconds), DataLoader(data, batch_size=1))
    return capsys.readouterr().out.splitlines()


def test_a_starving_loader_is_named_in_every_line_and_what_helps_is_told_once(tmp_path, capsys, watch):
    found = lines(tmp_path, capsys, Slow(watch, 0.06), 0.02)
    shares = [int(share) for line in found for share in re.findall(r"waiting for data (\d+)%", line)]
    assert len(shares) == 3
    assert shares == [75, 75, 75]
    assert sum("The loader is what limits the speed" in line for line in found) == 1
    assert "The loader is what limits the speed" in found[1]


def test_a_loader_that_keeps_up_is_not_mentioned(tmp_path, capsys, watch):
    found = lines(tmp_path, capsys, Slow(watch, 0.0), 0.03)
    assert len(found) == 3
    assert not any("waiting" in line or "loader" in line for line in found)


def test_a_slow_beginning_of_the_epoch_is_counted_but_more_workers_are_not_advised(tmp_path, capsys, watch):
    found = lines(tmp_path, capsys, Slow(watch, 0.0, first=0.2), 0.03)
    assert len(found) == 3
    assert all(line.endswith("waiting for data 53%") for line in found)  # 0.2 s of 0.2 + 6 x 0.03


def test_without_a_measurement_nothing_is_claimed(tmp_path, capsys, watch):
    found = lines(tmp_path, capsys, Slow(watch, 0.05), 0.0, [EpochProgress(bar=False)])
    assert "waiting" not in "".join(found)


def test_pauses_do_not_count_and_the_first_batch_of_an_epoch_is_known(watch):
    clock = DataWait(torch.device("cpu"))
    clock.begin(epoch=True)
    watch.sleep(5)
    clock.came()
    watch.sleep(2)
    clock.done()
    clock.pause()
    watch.sleep(300)
    clock.begin(epoch=False)
    watch.sleep(1)
    clock.came()
    assert clock.starting == 5
    assert clock.read() == (6, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_busy_while_the_process_waits_is_not_starved():
    device = torch.device("cuda")
    square = torch.rand(4096, 4096, device=device)
    for work, least, most in ((40, 0.0, 0.1), (0, 0.6, 1.0)):
        torch.cuda.synchronize()
        clock = DataWait(device)
        clock.begin(epoch=True)
        for _ in range(20):
            clock.came()
            for _ in range(work):
                square @ square
            clock.done()
            time.sleep(0.01)
        torch.cuda.synchronize()
        clock.came()
        waited, total = clock.read()
        assert least <= waited / total <= most
