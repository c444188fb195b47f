"""Each balance against arithmetic of its own, and in trainings that stop, go on, share and lack targets."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import FSDPStrategy
from torch.utils.data import DataLoader

from densepred.balance.base import Balance
from densepred.balance.equal_gradients import EqualGradientBalance
from densepred.balance.gradnorm import GradNormBalance
from densepred.balance.task_losses import TaskLosses, branch
from densepred.balance.uncertainty import UncertaintyBalance
from densepred.callbacks.checkpoints import LastCheckpoint
from densepred.callbacks.compiled import Compile
from densepred.callbacks.freeze import Freeze
from densepred.callbacks.throughput import Throughput
from densepred.cli import main
from densepred.data.rooms import RoomsDataModule
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError
from densepred.module import DensePredictor
from densepred.reports.layout import layout
from densepred.reports.run import Run
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation
from tests.test_cli import ROOMS

METHODS = [UncertaintyBalance, GradNormBalance, partial(EqualGradientBalance, every=1)]


def tasks():
    return [Segmentation(11), Depth(), Normals()]


def begun(balance: Balance, *chosen) -> Balance:
    balance.begin(chosen or tasks())
    return balance


def step_of(*losses, maps=()):
    names = [f"task{i}" for i in range(len(losses))]
    return TaskLosses(dict(zip(names, losses, strict=True)), dict.fromkeys(names, 1.0), maps)


def quadratics(coefficients, at=(3.0, 4.0)):
    """Losses c |x|^2 / 2 of one map x: the gradient c x has norm c |x|."""
    (x,) = branch([torch.tensor(at, requires_grad=True)])
    return step_of(*(c * x.square().sum() / 2 for c in coefficients), maps=[x])


def test_the_norm_of_a_tasks_gradient_is_that_over_all_maps_and_not_through_the_encoder():
    image = torch.tensor([1.0, 2.0], requires_grad=True)
    fine = 3 * image
    maps = branch([fine, 2 * fine])  # the coarse map comes from the fine one
    step = step_of(maps[0].sum() + maps[1].square().sum() / 2, 5 * maps[0].sum(), maps=maps)
    # d/dfine = (1, 1) directly, d/dcoarse = coarse = (6, 12); the way from fine to coarse is not counted
    assert step.gradient_norms.tolist() == pytest.approx([np.sqrt(2 + 36 + 144), 5 * np.sqrt(2)])


def test_measuring_leaves_the_gradients_of_the_step_as_they_are():
    module = build(EqualGradientBalance(), auxiliary=PointwiseDecoder)
    batch = next(iter(loader()))
    gradients = []
    for measure in (False, True):
        torch.manual_seed(1)
        module.zero_grad()
        maps = branch(module.network.maps(batch["image"]))
        step = module._losses("train", module.network.planes_from(maps, (40, 56)), batch, maps)
        if measure:
            assert (step.gradient_norms > 0).all()
        step.total.backward()
        gradients.append({name: p.grad.clone() for name, p in module.network.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_the_measured_norms_are_those_of_each_task_trained_by_itself():
    for shared in (False, True):
        module = build(None, share_decoder=shared)
        batch = next(iter(loader()))
        maps = branch(module.network.maps(batch["image"]))
        step = module._losses("train", module.network.planes_from(maps, (40, 56)), batch, maps)
        for index, task in enumerate(module.tasks):
            leaves = [m.detach().requires_grad_() for m in maps]
            planes = module.network.planes_from(leaves, (40, 56))
            task.loss_from_planes(planes[task.name], batch).backward()
            expected = sum(leaf.grad.double().square().sum() for leaf in leaves if leaf.grad is not None).sqrt()
            torch.testing.assert_close(step.gradient_norms[index].double(), expected, rtol=1e-5, atol=0)


def test_uncertainty_weighs_as_published():
    balance = begun(UncertaintyBalance(), Segmentation(3), Depth())
    with torch.no_grad():
        balance.log_variances.copy_(torch.tensor([0.5, -1.0]))
    losses = torch.tensor([2.0, 3.0])
    expected = [2 * np.exp(-0.5) + 0.25, 3 * np.exp(1.0) / 2 - 0.5]
    assert balance(losses).tolist() == pytest.approx(expected)
    assert balance.weights().tolist() == pytest.approx([np.exp(-0.5), np.exp(1.0) / 2])


def test_uncertainty_comes_to_rest_at_the_logarithm_of_the_loss():
    balance = begun(UncertaintyBalance(), Segmentation(3), Depth(), Normals())
    losses = torch.tensor([0.7, 12.0, 0.05])
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        balance(losses).sum().backward()
        optimizer.step()
    assert balance.log_variances.tolist() == pytest.approx(np.log([2 * 0.7, 12.0, 0.05]), abs=1e-4)
    assert (balance.weights() * losses).tolist() == pytest.approx([0.5] * 3, abs=1e-4)


def test_a_log_variance_stays_where_it_is_while_its_task_has_no_target():
    balance = begun(UncertaintyBalance())
    balance(torch.tensor([0.0, 1.0, 0.0])).sum().backward()
    assert balance.log_variances.grad.tolist() == pytest.approx([0.0, 0.0, 0.0])
    balance.log_variances.grad = None
    balance(torch.tensor([0.0, 3.0, 0.0])).sum().backward()
    assert balance.log_variances.grad.tolist() == pytest.approx([0.0, -1.0, 0.0])


def test_equal_gradients_makes_the_weighted_norms_equal_with_factors_that_sum_to_the_tasks():
    balance = begun(EqualGradientBalance(momentum=0.0))
    assert balance.weights().tolist() == [1.0, 1.0, 1.0]
    balance.observe(quadratics([2.0, 0.1, 40.0]))
    balance.update()
    norms = 5 * np.array([2.0, 0.1, 40.0])
    weighted = balance.weights().numpy() * norms
    assert weighted == pytest.approx([weighted[0]] * 3)
    assert balance.weights().sum().item() == pytest.approx(3)


def test_equal_gradients_keeps_running_means_from_the_first_measurement_on():
    balance = begun(EqualGradientBalance(momentum=0.75), Depth(), Normals())
    mean = None
    for coefficients in ([1.0, 4.0], [3.0, 2.0], [5.0, 5.0]):
        balance.observe(quadratics(coefficients))
        balance.update()
        norms = 5 * np.array(coefficients)
        mean = norms if mean is None else 0.75 * mean + 0.25 * norms
        assert balance.weights().numpy() == pytest.approx(2 / mean / (1 / mean).sum())


def gradnorm_in_numpy(coefficients_by_step, losses_by_step, alpha, rate):
    """Algorithm 1 of the paper, with Adam written out."""
    weights, first, second, initial = np.ones(len(losses_by_step[0])), 0.0, 0.0, losses_by_step[0]
    for count, (norms, losses) in enumerate(zip(coefficients_by_step, losses_by_step, strict=True), start=1):
        ratio = losses / initial
        inverse_rate = ratio / ratio.mean()
        scaled = weights * norms
        goal = scaled.mean() * inverse_rate**alpha
        gradient = np.sign(scaled - goal) * norms
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights = weights - rate * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        weights = weights * len(weights) / weights.sum()
    return weights


def test_gradnorm_takes_the_papers_steps():
    random = np.random.default_rng(0)
    norms, losses = random.uniform(0.1, 5, (12, 3)), random.uniform(0.5, 2, (12, 3))
    balance = begun(GradNormBalance(alpha=1.5, learning_rate=0.05))
    for norm, loss in zip(norms, losses, strict=True):
        balance.move(torch.tensor(norm).float(), torch.tensor(loss).float(), torch.ones(3, dtype=torch.bool))
    expected = gradnorm_in_numpy(norms, losses, 1.5, 0.05)
    assert balance.weights().numpy() == pytest.approx(expected, rel=1e-4)
    assert abs(expected - 1).max() > 0.1


def test_gradnorm_without_alpha_comes_to_rest_where_equal_gradients_is_at_once():
    slow, direct = begun(GradNormBalance(alpha=0.0, learning_rate=0.01)), begun(EqualGradientBalance())
    for _ in range(400):
        for balance in (slow, direct):
            balance.observe(quadratics([2.0, 1.0, 4.0]))
            balance.update()
    assert slow.weights().tolist() == pytest.approx(direct.weights().tolist(), abs=0.03)


def test_gradnorm_gives_more_to_the_task_that_has_learned_less():
    balance = begun(GradNormBalance(alpha=1.0), Depth(), Normals())
    for losses in ([1.0, 1.0], *([0.2, 0.9],) * 30):
        balance.move(torch.ones(2), torch.tensor(losses), torch.tensor([True, True]))
    assert balance.weights()[1] > 1.3


@pytest.mark.parametrize("method", [GradNormBalance, EqualGradientBalance])
def test_a_task_that_was_never_measured_keeps_its_factor_and_all_stay_finite(method):
    balance = begun(method())
    (x,) = branch([torch.tensor([3.0, 4.0], requires_grad=True)])
    for _ in range(20):
        balance.observe(step_of(x.sum(), 0 * x.sum(), (x * float("nan")).sum(), maps=[x]))
        balance.update()
    assert balance.weights().tolist() == [1.0, 1.0, 1.0]
    balance.observe(quadratics([1.0, 2.0, 4.0]))
    balance.update()
    assert balance.weights().isfinite().all()
    assert balance.weights().sum().item() == pytest.approx(3)


@pytest.mark.parametrize("losses", [[-1.0, 2.0], [0.0, 0.0]])
def test_gradnorm_bears_losses_that_are_not_positive(losses):
    balance = begun(GradNormBalance(), Depth(), Normals())
    for scale in (1.0, 0.5, -0.5):
        balance.move(torch.ones(2), scale * torch.tensor(losses), torch.tensor([True, True]))
    assert balance.weights().isfinite().all()


@pytest.mark.parametrize("method", [GradNormBalance, EqualGradientBalance])
def test_batches_of_one_step_measure_like_one_batch_of_all(method):
    """A mean over two halves has half of each half's gradient, side by side."""
    x = torch.rand(2, 1, 2, 2, requires_grad=True)
    parts, whole = begun(method(), Depth(), Normals()), begun(method(), Depth(), Normals())
    for half in x:
        (maps,) = branch([half])
        parts.observe(step_of(maps.square().mean(), maps.exp().mean(), maps=[maps]))
    (maps,) = branch([x])
    whole.observe(step_of(maps.square().mean(), maps.exp().mean(), maps=[maps]))
    parts.update()
    whole.update()
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_one_task_alone_is_refused():
    with pytest.raises(ConfigurationError, match="nothing to balance with 1 task"):
        begun(UncertaintyBalance(), Depth())


def loader(count=4, missing=0.0):
    data = RoomsDataModule(size=(40, 56), train=count, missing=missing, num_workers=0, batch_size=2)
    data.setup("fit")
    return data.train_dataloader()


class Quiet(DensePredictor):
    """Takes a training step also without a trainer to log to."""

    def log(self, *args, **options):
        if self._trainer is not None:
            super().log(*args, **options)


def build(balance, **options):
    chosen = options.pop("tasks", None) or tasks()
    decoder = partial(UNetDecoder, widths=(4,))
    return Quiet(UNetEncoder(widths=(4, 8)), decoder, chosen, balance=balance, **options)


def fit(folder, balance, steps=3, data=None, resume=None, **options):
    trainer_options = options.pop("trainer", {})
    pl.seed_everything(0 if resume is None else 9, verbose=False)
    module = build(balance, **options)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, limit_val_batches=0, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **({"enable_checkpointing": False} | trainer_options),
    )  # fmt: skip
    data = data or RoomsDataModule(size=(40, 56), train=8, num_workers=0, batch_size=2)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, trainer


@pytest.mark.parametrize("method", METHODS)
def test_a_balanced_training_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path, method):
    data = partial(RoomsDataModule, size=(40, 56), train=4, num_workers=0, batch_size=2)
    whole, _ = fit(tmp_path, method(), steps=5, data=data())
    saving = {"callbacks": [LastCheckpoint()], "enable_checkpointing": True}
    stopped, _ = fit(tmp_path, method(), steps=2, data=data(), trainer=saving)
    (path,) = tmp_path.rglob("last.ckpt")
    rest, _ = fit(tmp_path, method(), steps=5, data=data(), resume=path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
    assert not torch.equal(whole.balance.weights(), begun(method()).weights())
    again = Quiet.load_from_checkpoint(path, weights_only=True)
    assert type(again.balance) is type(stopped.balance)
    torch.testing.assert_close(again.balance.state_dict(), stopped.balance.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_balanced_tasks_train_with_a_shared_decoder_accumulation_and_a_task_without_targets(
    tmp_path, method, precision
):
    trainer = {"accumulate_grad_batches": 2, "precision": precision, "gradient_clip_val": 1.0}
    unlabelled = RoomsDataModule(size=(40, 56), train=8, num_workers=0, batch_size=2, void=0.999999)
    auxiliary = PointwiseDecoder
    module, _ = fit(
        tmp_path, method(), steps=4, data=unlabelled, share_decoder=True, auxiliary=auxiliary, trainer=trainer
    )
    assert all(p.isfinite().all() for p in module.parameters())
    labels, *others = module.balance.weights()
    assert labels == 1.0
    assert torch.stack(others).isfinite().all()
    assert others[0] != others[1] if method is not GradNormBalance else others[0] + others[1] == pytest.approx(2)


@pytest.mark.parametrize("method", METHODS)
def test_a_tasks_own_weight_stands_before_its_balanced_term(method):
    module = build(method(), tasks=[Depth(weight=3.0), Normals(weight=0.5)])
    batch = next(iter(loader()))
    torch.manual_seed(1)
    total = module.training_step(batch, 0)
    planes = module.network.planes(batch["image"])
    losses = torch.stack([task.loss_from_planes(planes[task.name], batch) for task in module.tasks])
    torch.testing.assert_close(total, torch.tensor([3.0, 0.5]) @ module.balance(losses))


def test_the_terms_that_equal_gradients_makes_pull_equally_at_the_encoder_in_training(tmp_path):
    logged = {}

    class Log(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            logged.update({key: float(value) for key, value in trainer.callback_metrics.items()})

    batch = next(iter(loader(2)))
    data = DataLoader([{key: value[i] for key, value in batch.items()} for i in (0, 1)], 2)
    options = {"callbacks": [Log(), Throughput()], "log_every_n_steps": 1}
    module = build(EqualGradientBalance(momentum=0.0), optimizer=partial(torch.optim.SGD, lr=0.0))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, max_epochs=2, limit_val_batches=0, logger=CSVLogger(tmp_path),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, data)
    # nothing has learned: what the first step measured makes the second one's terms even
    norms = [logged[f"train/{name}/gradient_norm"] for name in ("segmentation", "depth", "normals")]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-3)
    assert sum(logged[f"train/{name}/weight"] for name in ("segmentation", "depth", "normals")) == pytest.approx(3)
    assert logged["train/loss"] == pytest.approx(
        sum(logged[f"train/{name}/loss"] for name in ("segmentation", "depth", "normals")), rel=1e-5
    )


def test_while_the_encoder_is_frozen_the_factors_stay(tmp_path):
    module, _ = fit(tmp_path, EqualGradientBalance(), steps=2, trainer={"callbacks": [Freeze()]})
    assert module.balance.weights().tolist() == [1.0, 1.0, 1.0]


def test_sharded_parameters_are_refused_by_balances_that_measure():
    trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(ConfigurationError, match=r"GradNormBalance .* FSDPStrategy does not .* UncertaintyBalance"):
        GradNormBalance().check(trainer)
    UncertaintyBalance().check(trainer)


def test_uncertainties_learn_in_a_group_of_their_own_that_never_decays():
    groups = build(UncertaintyBalance()).build_optimizer().param_groups
    assert [(group["name"], group["weight_decay"]) for group in groups][-1] == ("rest", 0.0)
    assert groups[-1]["names"] == ["balance.log_variances"]


def test_every_makes_the_measurements_rarer(tmp_path, monkeypatch):
    steps = []
    observe = EqualGradientBalance.observe
    monkeypatch.setattr(EqualGradientBalance, "observe", lambda self, step: (steps.append(1), observe(self, step)))
    fit(tmp_path, EqualGradientBalance(every=3), steps=7)
    assert len(steps) == 3  # steps 0, 3, 6


def test_a_balance_is_named_in_a_configuration_and_its_curves_stand_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(yaml.safe_dump(ROOMS))
    config["model"]["init_args"]["balance"] = {"class_path": "GradNormBalance", "init_args": {"alpha": 0.5}}
    config["trainer"] |= {"max_steps": 2, "max_epochs": 1, "log_every_n_steps": 1}
    Path("rooms.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "rooms.yaml", "--model.balance.every", "2"]) == 0
    balance = DensePredictor.load_from_checkpoint("runs/version_0/checkpoints/last.ckpt").balance
    assert (balance.alpha, balance.every) == (0.5, 2)
    plots = {plot.title: plot.keys for plot in layout(Run(Path("runs/version_0")).curves)["Balance"]}
    names = [task["class_path"].rpartition(".")[2].lower() for task in config["model"]["init_args"]["tasks"]]
    assert set(plots["factor of each task"]) == {f"train/{name}/weight" for name in names}
    assert set(plots["gradient of each task at the encoder"]) == {f"train/{name}/gradient_norm" for name in names}
    assert main(["report", "runs/version_0"]) == 0
    page = next(Path("runs").rglob("*.html")).read_text()
    assert "factor of each task" in page
    capsys.readouterr()
    assert main(["list", "balance"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == ["balance", "EqualGradientBalance", "GradNormBalance", "UncertaintyBalance"]


@pytest.mark.slow
def test_a_compiled_network_can_be_measured(tmp_path):
    callbacks = [Compile(backend="aot_eager")]
    module, _ = fit(tmp_path, EqualGradientBalance(momentum=0.0), steps=2, trainer={"callbacks": callbacks})
    plain, _ = fit(tmp_path, EqualGradientBalance(momentum=0.0), steps=2)
    torch.testing.assert_close(module.balance.weights(), plain.balance.weights(), rtol=1e-3, atol=1e-4)


def train_in_two_processes(folder):
    """Each process writes its factors after every step, with targets that differ between them."""

    class Notes(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            with open(f"{folder}/{trainer.global_rank}", "a") as file:
                file.write(json.dumps(module.balance.weights().tolist()) + "\n")

    for method in METHODS:
        options = {"devices": 2, "strategy": "ddp_fork", "callbacks": [Notes()]}
        data = RoomsDataModule(size=(40, 56), train=8, num_workers=0, batch_size=1, missing=0.3)
        fit(folder, method(), data=data, trainer=options)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a second of work; starting processes takes long on a busy machine
def test_two_processes_have_the_same_factors_after_every_step(tmp_path):
    code = f"from tests.test_balance import train_in_two_processes; train_in_two_processes({str(tmp_path)!r})"
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=580)
    one, other = ([json.loads(line) for line in (tmp_path / rank).read_text().splitlines()] for rank in "01")
    assert one == other
    assert len(one) == 3 * len(METHODS)
    assert all(one[i] != one[i + 2] for i in (0, 3, 6))
