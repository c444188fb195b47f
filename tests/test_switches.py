"""Averages of weights, accumulation, precision, compilation, memory format and recomputation: what each changes."""

import copy
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import TorchSyncBatchNorm
from pytorch_lightning.utilities import rank_zero_only
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import SGD

from densepred.callbacks.averaging import EMA, SWA
from densepred.callbacks.channels_last import ChannelsLast
from densepred.callbacks.checkpoints import LastCheckpoint, WholeFileCheckpointIO
from densepred.callbacks.compiled import Compile
from densepred.callbacks.freeze import Freeze
from densepred.callbacks.recompute import Recompute
from densepred.callbacks.throughput import Throughput
from densepred.cli import main
from densepred.commands import refusals
from densepred.data.rooms import RoomsDataModule
from densepred.decoders.tiramisu import TiramisuDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.fcdensenet import FCDenseNetEncoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.unet import UNetEncoder
from densepred.errors import ConfigurationError
from densepred.loggers import RunLogger
from densepred.module import DensePredictor
from densepred.network import DenseNetwork
from densepred.parameter_groups import parameter_groups
from densepred.rays.module import RayDistancePredictor
from densepred.schedules import PolyLR
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation
from tests.test_cli import ROOMS, column
from tests.test_exact_resume import ORDER, Draws, Interrupt, SpecklesDataModule, assert_same

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


class Notes(pl.Callback):
    """The state of the training's own weights after every step, before any average looks at them."""

    def __init__(self):
        self.states = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.note(trainer, module)

    def on_train_batch_end(self, trainer, module, *args):
        self.note(trainer, module)

    def note(self, trainer, module):
        if len(self.states) < trainer.global_step:
            self.states.append(copy.deepcopy(module.state_dict()))


def predictor(norm="batch", dropout=0.5, tasks=None, rate=0.1, **options):
    pl.seed_everything(0, verbose=False)
    return DensePredictor(
        UNetEncoder(widths=(4, 8, 8), norm=norm),
        partial(UNetDecoder, widths=(8, 4), dropout=dropout, norm=norm),
        tasks or [Segmentation(3), Depth()],
        optimizer=partial(SGD, lr=rate, momentum=0.9),
        **options,
    )


def speckles(batch_size=2):
    return SpecklesDataModule(batch_size=batch_size, num_workers=0)


def trained(callbacks=(), module=None, data=None, **options):
    """Two epochs of four steps in memory; the module as the training has it, and the trainer."""
    module = module or predictor()
    quiet = QUIET | {"logger": False, "enable_checkpointing": False, "max_epochs": 2}
    trainer = pl.Trainer(callbacks=list(callbacks), **(quiet | options))
    trainer.fit(module, data or speckles())
    return module, trainer


def saved(folder, *callbacks, module=None, interrupt="", resume=None, **options):
    """The last checkpoint of a run in a folder."""
    os.environ[ORDER] = interrupt
    trainer = pl.Trainer(
        default_root_dir=folder,
        logger=RunLogger(folder, version=0),
        callbacks=[Interrupt(), Draws(), *callbacks, LastCheckpoint()],
        plugins=[WholeFileCheckpointIO()],
        **(QUIET | {"max_epochs": 2} | options),
    )
    path = folder / "version_0" / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(module or predictor(), speckles(), ckpt_path=str(path) if resume else None, weights_only=True)
    finally:
        del os.environ[ORDER]
    return torch.load(path, weights_only=True)


def close(one, other, tolerance):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(
            one[key], other[key], atol=tolerance, rtol=tolerance, msg=lambda text, k=key: k + text
        )


@pytest.mark.parametrize("options", [{"decay": 0.6, "warmup": False}, {"decay": 0.3, "every": 2, "from_step": 1}])
def test_the_moving_average_is_the_recursion_of_its_definition(options, tmp_path):
    notes = Notes()
    checkpoint = saved(tmp_path, notes, EMA(**options))
    steps = notes.states[options.get("from_step", 0) :: options.get("every", 1)]
    assert len(notes.states) == 8
    for name, value in checkpoint["state_dict"].items():
        if not value.is_floating_point():
            assert torch.equal(value, steps[-1][name])
            continue
        average = steps[0][name].double().numpy()
        for count, state in enumerate(steps[1:], start=1):
            d = min(options["decay"], (1 + count) / (10 + count)) if options.get("warmup", True) else options["decay"]
            average = d * average + (1 - d) * state[name].double().numpy()
        np.testing.assert_allclose(value.numpy(), average, rtol=1e-5, atol=1e-6, err_msg=name)
    assert_same(dict(checkpoint["current_model_state"]), dict(notes.states[-1]))


def test_what_is_validated_kept_as_best_and_left_at_the_end_is_the_average(tmp_path):
    best = ModelCheckpoint(tmp_path, "best", "val/loss", save_weights_only=False)
    last = ModelCheckpoint(tmp_path, "last")
    module, _ = trained([EMA(decay=0.9), best, last], enable_checkpointing=True)
    logged = float(best.best_model_score)
    loaded = DensePredictor.load_from_checkpoint(best.best_model_path, weights_only=True)
    measure = pl.Trainer(logger=False, enable_checkpointing=False, **QUIET)
    assert measure.validate(loaded, speckles(), verbose=False)[0]["val/loss"] == pytest.approx(logged, rel=1e-6)
    checkpoint = torch.load(best.best_model_path, weights_only=True)
    loaded.load_state_dict(checkpoint["current_model_state"])
    assert measure.validate(loaded, speckles(), verbose=False)[0]["val/loss"] != pytest.approx(logged, rel=1e-3)
    left = torch.load(last.best_model_path, weights_only=True)
    assert left["global_step"] == 8
    assert_same(dict(module.state_dict()), left["state_dict"])


@pytest.mark.parametrize("average", [partial(EMA, from_step=100), partial(SWA, 0.75)], ids=["EMA", "SWA"])
def test_until_there_is_an_average_everything_is_as_without(average, tmp_path):
    checkpoints = []
    for callbacks in ([average()], []):
        best = ModelCheckpoint(tmp_path / str(len(callbacks)), "best", "val/loss", save_top_k=1)
        with pytest.raises(SystemExit):
            saved(tmp_path / f"last{len(callbacks)}", *callbacks, best, interrupt="TERM train 6")
        checkpoints.append(torch.load(best.best_model_path, weights_only=True))
    assert_same(checkpoints[0]["state_dict"], checkpoints[1]["state_dict"])
    assert "current_model_state" not in checkpoints[0]


@pytest.mark.parametrize("place", ["train 5", "epoch 4"])
@pytest.mark.parametrize(
    "average", [partial(EMA, 0.7), partial(EMA, 0.9, 2, 3), partial(SWA, 0.2, 2)], ids=["EMA", "late", "SWA"]
)
def test_an_interrupted_run_continues_its_average_to_the_bit(average, place, tmp_path):
    expected = saved(tmp_path / "whole", average())
    with pytest.raises(SystemExit) as end:
        saved(tmp_path / "cut", average(), interrupt=f"TERM {place}")
    assert end.value.code == 128 + signal.SIGTERM
    found = saved(tmp_path / "cut", average(), resume=True)
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "random_states"):
        assert_same(found[key], expected[key], key)


def test_frozen_weights_and_statistics_are_their_own_average():
    for average in (EMA(decay=0.7, warmup=False), SWA(start=0.0, batches=1)):
        module = predictor()
        before = copy.deepcopy(module.network.encoder.state_dict())
        trained([Freeze(), average], module)
        assert_same(dict(module.network.encoder.state_dict()), dict(before))


def test_swa_is_the_mean_of_the_last_epochs_with_the_statistics_of_its_own_maps(tmp_path):
    notes = Notes()
    checkpoint = saved(tmp_path, notes, SWA(start=0.5), module=predictor(dropout=0.0), max_epochs=4)
    ends = [notes.states[step - 1] for step in (12, 16)]
    statistics = ("running_mean", "running_var")
    for name, value in checkpoint["state_dict"].items():
        if value.is_floating_point() and not name.endswith(statistics):
            mean = np.mean([state[name].double().numpy() for state in ends], axis=0)
            np.testing.assert_allclose(value.numpy(), mean, rtol=1e-5, atol=1e-6, err_msg=name)

    module = predictor(dropout=0.0)
    module.load_state_dict(checkpoint["state_dict"])
    loader = speckles().train_dataloader()
    loader.sampler.set_epoch(3)
    torch.optim.swa_utils.update_bn((batch["image"] for batch in loader), module.network)
    found = {name: value for name, value in checkpoint["state_dict"].items() if name.endswith(statistics)}
    close(found, {name: value for name, value in module.state_dict().items() if name in found}, 1e-5)
    differ = [name for name in found if not torch.allclose(found[name], checkpoint["current_model_state"][name])]
    assert len(differ) == len(found)


def test_measuring_statistics_leaves_the_training_as_it_is(tmp_path):
    with_average = saved(tmp_path / "average", SWA(start=0.0))
    plain = saved(tmp_path / "plain")
    assert_same(with_average["current_model_state"], plain["state_dict"])
    assert_same(with_average["random_states"], plain["random_states"])


def test_averages_that_cannot_be_are_refused():
    with pytest.raises(ConfigurationError, match=r"has 2 averages of the weights \(EMA, SWA\).* Keep one"):
        trained([EMA(), SWA()])
    with pytest.raises(ConfigurationError, match="max_epochs and max_steps are both -1"):
        trained([SWA()], max_epochs=-1)
    with pytest.raises(ConfigurationError, match=r"decay is 1\.5"):
        EMA(decay=1.5)
    with pytest.raises(ConfigurationError, match=r"start is 1\.0"):
        SWA(start=1.0)


def test_accumulated_batches_make_the_step_of_a_large_one_where_norms_know_no_batch():
    options = {"norm": "group", "dropout": 0.0}
    whole, _ = trained((), predictor(**options), speckles(4))
    parts, trainer = trained((), predictor(**options), speckles(2), accumulate_grad_batches=2)
    assert trainer.global_step == 4
    close(dict(parts.state_dict()), dict(whole.state_dict()), 1e-5)
    once, _ = trained((), predictor(**options), speckles(2), max_steps=4)
    assert not torch.allclose(
        once.network.encoder.levels[0][0][0].weight, whole.network.encoder.levels[0][0][0].weight, atol=1e-4
    )


def test_clipping_bounds_the_step_and_the_norm_is_logged_before_it(tmp_path):
    module = predictor(rate=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    trained([Throughput()], module, max_steps=1, gradient_clip_val=0.01, log_every_n_steps=1,
            logger=CSVLogger(tmp_path, name=None, version=0), limit_val_batches=0)  # fmt: skip
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert column(tmp_path / "version_0", "train/gradient_norm")[0] > 0.1


def test_half_precision_stays_near_full_and_its_losses_and_directions_are_whole():
    losses, modules = {}, {}
    for precision in ("32-true", "bf16-mixed"):
        tasks = [Segmentation(11), Depth(), Normals()]
        data = RoomsDataModule(size=(40, 40), train=8, val=2, batch_size=2, num_workers=0)
        module = predictor(dropout=0.0, tasks=tasks, rate=0.01)
        modules[precision], trainer = trained((), module, data, precision=precision)
        assert trainer.callback_metrics["val/loss"].dtype == torch.float32
        losses[precision] = float(trainer.callback_metrics["val/loss"])
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.02)
    assert losses["bf16-mixed"] != losses["32-true"]
    assert {p.dtype for p in modules["bf16-mixed"].parameters()} == {torch.float32}
    image = torch.randint(0, 255, (1, 3, 40, 40), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        lengths = modules["bf16-mixed"].eval()(image)["normals"].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_compiled_networks_train_as_others_and_checkpoints_fit_both(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    others = [EMA, ChannelsLast, partial(Freeze, 1)]

    def run(folder, *callbacks, **options):
        module = predictor(dropout=0.0, tasks=[Depth()], rate=0.01)
        return saved(tmp_path / folder, *(other() for other in others), *callbacks, module=module, **options)

    compiled = run("compiled", Compile(backend="aot_eager"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4  # encoder and decoder, training and evaluation
    plain = run("plain")
    close(compiled["state_dict"], plain["state_dict"], 1e-4)
    close(compiled["current_model_state"], plain["current_model_state"], 1e-4)
    further = run("compiled", resume=True, max_epochs=3)
    assert further["global_step"] == 12


def test_images_and_weights_by_pixels_compute_the_same():
    layouts = []

    class Spy(pl.Callback):
        def on_train_start(self, trainer, module):
            module.network.encoder.levels[0][0][0].register_forward_hook(
                lambda layer, inputs, output: layouts.append(
                    [x.is_contiguous(memory_format=torch.channels_last) for x in (inputs[0], layer.weight, output)]
                )
            )

    found, _ = trained([ChannelsLast(), Spy()], predictor(dropout=0.0, rate=0.01))
    plain, _ = trained((), predictor(dropout=0.0, rate=0.01))
    assert layouts
    assert all(all(layout) for layout in layouts)
    close(dict(found.state_dict()), dict(plain.state_dict()), 1e-5)
    assert not found.network.encoder._forward_pre_hooks


def test_ray_distance_networks_are_laid_out_by_pixels_too():
    module = RayDistancePredictor(ResNetEncoder("resnet18"), uniform=4, near_hits=4, samples=8, grid=(2, 2))
    callback = ChannelsLast()
    image = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    before = module.eval().network.maps(image)
    callback.setup(None, module, "fit")
    layouts = []
    first = next(layer for layer in module.network.encoder.modules() if isinstance(layer, torch.nn.Conv2d))
    first.register_forward_hook(
        lambda layer, inputs, output: layouts.extend(
            x.is_contiguous(memory_format=torch.channels_last) for x in (inputs[0], layer.weight, output)
        )
    )
    after = module.network.maps(image)
    assert layouts
    assert all(layouts)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    callback.teardown(None, module, "fit")
    assert not module.network.encoder._forward_pre_hooks


NETWORKS = {
    "UNet": (partial(UNetEncoder, widths=(4, 8, 8)), partial(UNetDecoder, widths=(8, 4), dropout=0.5)),
    "ResNet": (ResNetEncoder, partial(UNetDecoder, widths=(16, 16, 8, 8), dropout=0.5)),
    "FCDenseNet": (partial(FCDenseNetEncoder, layers=(2, 2), bottleneck=2, growth=4, recompute=True),
                   partial(TiramisuDecoder, layers=(2, 2), growth=4, recompute=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputation_changes_no_number_and_counts_no_batch_twice(name):
    encoder, decoder = NETWORKS[name]
    ends = []
    for callbacks in ((), (Recompute(),)):
        pl.seed_everything(0, verbose=False)
        module = DensePredictor(encoder(), decoder, [Segmentation(3)], optimizer=partial(SGD, lr=0.1))
        trained(callbacks, module, max_steps=2, limit_val_batches=0)
        ends.append(dict(module.state_dict()))
        assert not [m for m in module.modules() if "forward" in vars(m)]
    assert_same(ends[1], ends[0])
    assert {int(value) for key, value in ends[1].items() if key.endswith("num_batches_tracked")} == {2}


def storages(inputs):
    maps = [one for part in inputs for one in (part if isinstance(part, list) else [part])]
    return {one.untyped_storage()._cdata: one.untyped_storage() for one in maps}


def held(network, blocks):
    """Bytes that the backward pass waits for: what the graph has saved, and what enters the blocks."""
    kept = {}

    def keep(tensor):
        kept.update(storages([tensor]))
        return tensor

    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    hooks = [block.register_forward_pre_hook(lambda _, inputs: kept.update(storages(inputs))) for block in blocks]
    image = torch.zeros(2, 3, 128, 128)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        planes = network.train().planes(image)
    for hook in hooks:
        hook.remove()
    del planes
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def test_recomputation_keeps_less_than_half():
    network = DenseNetwork(ResNetEncoder("resnet50"), partial(UNetDecoder, widths=(16, 16, 8, 8)), {"depth": 1})
    recompute = Recompute()
    blocks = list(recompute.parts(network).values())
    assert sum(type(block).__name__ == "Bottleneck" for block in blocks) == 16
    module = nn.Module()
    module.network = network
    plain = held(network, [])
    recompute.setup(pl.Trainer(logger=False, callbacks=[recompute], **QUIET), module, "fit")
    assert held(network, blocks) < plain / 2
    recompute.teardown(None, module, "fit")
    assert held(network, []) == plain


def test_recomputation_of_nothing_and_of_compiled_networks_is_refused():
    with pytest.raises(ConfigurationError, match=r"nothing has a name like encoder\.stage\* in UNetEncoder"):
        trained([Recompute(["encoder.stage*"])])
    with pytest.raises(ConfigurationError, match="Keep one of the two"):
        trained([Recompute(), Compile()])


def test_synchronised_norms_keep_their_names_and_groups_and_group_norm_stays():
    module = predictor()
    keys = list(module.state_dict())
    groups = [group.names for group in parameter_groups(module, decay_norms_and_biases=False)]
    converted = TorchSyncBatchNorm().apply(module)
    kinds = {type(layer) for layer in converted.modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
    assert list(converted.state_dict()) == keys
    assert [group.names for group in parameter_groups(converted, decay_norms_and_biases=False)] == groups
    assert nn.SyncBatchNorm not in {type(layer) for layer in TorchSyncBatchNorm().apply(predictor("group")).modules()}


SWITCHES = {
    "plain": {},
    "EMA": {"callbacks": [EMA]},
    "SWA": {"callbacks": [partial(SWA, 0.0, 1)]},
    "accumulation": {"accumulate_grad_batches": 2},
    "bf16": {"precision": "bf16-mixed"},
    "channels_last": {"callbacks": [ChannelsLast]},
    "recompute": {"callbacks": [Recompute]},
    "clipping": {"gradient_clip_val": 0.1},
    "all": {
        "callbacks": [EMA, partial(Freeze, 1), ChannelsLast, Recompute],
        "accumulate_grad_batches": 2, "precision": "bf16-mixed", "gradient_clip_val": 0.1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_and_all_together_train_are_interrupted_continue_and_are_tested(name, tmp_path):
    def run(folder, **more):
        options = dict(SWITCHES[name])
        callbacks = [callback() for callback in options.pop("callbacks", [])]
        return saved(tmp_path / folder, *callbacks, module=predictor(lr_scheduler=PolyLR), **options, **more)

    whole = run("whole")
    with pytest.raises(SystemExit):
        run("cut", interrupt="TERM train 6")
    rest = run("cut", resume=True)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(rest[key], whole[key], key)
    loaded = DensePredictor.load_from_checkpoint(
        tmp_path / "cut" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True
    )
    results = pl.Trainer(logger=False, **QUIET).test(loaded, speckles(), verbose=False)[0]
    assert np.isfinite(results["test/loss"])


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(yaml.safe_dump(ROOMS))
    config["model"]["init_args"] |= {
        "encoder": {"class_path": "UNetEncoder", "init_args": {"widths": [4, 8]}},
        "decoder": {"class_path": "UNetDecoder", "init_args": {"widths": [4]}},
    }
    config["data"]["init_args"]["size"] = [40, 40]
    config["trainer"] |= {
        "precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 1.0,
        "callbacks": [
            {"class_path": "EMA", "init_args": {"decay": 0.9}}, {"class_path": "ChannelsLast"},
            {"class_path": "Recompute"}, {"class_path": "Freeze", "init_args": {"stages": 1, "until_epoch": 1}},
        ],
    }  # fmt: skip
    path = tmp_path / "rooms.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("options", "has", "expected"),
    [
        ({"precision": "bf16-mixed", "accelerator": "cpu"}, False, "32-true"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, False, "32-true"),
        ({"precision": "bf16-mixed", "accelerator": "cpu"}, True, "bf16-mixed"),
        ({"precision": "bf16-mixed", "accelerator": "cuda"}, False, "bf16-mixed"),
        ({"precision": "64-true", "accelerator": "cpu"}, False, "64-true"),
        ({"accelerator": "cpu"}, False, None),
    ],
)
def test_a_processor_without_half_precision_computes_in_full(options, has, expected, monkeypatch):
    monkeypatch.setattr(refusals, "computes_bfloat16", lambda device: has or device != "cpu")
    given = Namespace(options)
    told = refusals.full_precision_where_half_is_slow(given)
    assert given.get("precision") == expected
    assert bool(told) == (expected != options.get("precision"))


def test_a_run_says_that_it_is_in_full_precision_and_writes_it_down(config, monkeypatch, capsys):
    monkeypatch.setattr(refusals, "computes_bfloat16", lambda device: False)
    assert main(["fit", "--config", str(config), "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]) == 0
    assert "32-true is taken" in capsys.readouterr().out
    written = yaml.safe_load(Path("runs/version_0/config.yaml").read_text())
    assert written["trainer"]["precision"] == "32-true"


def test_a_configuration_switches_all_on_and_its_checkpoint_is_tested(config, capsys):
    assert main(["fit", "--config", str(config)]) == 0
    assert "recomputed in the backward pass: " in capsys.readouterr().out
    checkpoint = torch.load("runs/version_0/checkpoints/best.ckpt", weights_only=True)
    assert int(checkpoint["averaging_state"]["n_averaged"]) == checkpoint["global_step"]
    assert main(["test", "--ckpt_path", "best"]) == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.timeout(600)  # two runs of two processes: slow on a busy machine
@pytest.mark.slow
def test_two_processes_by_torchrun_average_and_accumulate_as_one_with_their_batches(config):
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"]["encoder"]["init_args"]["norm"] = "group"
    content["model"]["init_args"]["decoder"]["init_args"]["norm"] = "group"
    content["trainer"]["callbacks"] = content["trainer"]["callbacks"][:3]
    del content["trainer"]["precision"]
    config.write_text(yaml.safe_dump(content))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.train=16"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    two = subprocess.run(
        [*torchrun, "densepred", "fit", "--config", str(config), *options], env=environment, capture_output=True,
        text=True, timeout=500, check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr[-3000:]
    assert [path.name for path in Path("runs").iterdir()] == ["version_0"]
    assert main(["fit", "--config", str(config), "--data.train=16", "--data.batch_size=4"]) == 0
    together, alone = (
        torch.load(f"runs/version_{number}/checkpoints/last.ckpt", weights_only=True) for number in (0, 1)
    )
    assert together["global_step"] == alone["global_step"] == 4
    close(together["current_model_state"], alone["current_model_state"], 1e-4)
    close(together["state_dict"], alone["state_dict"], 1e-4)


def test_the_first_process_alone_makes_the_folder_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "version_0").mkdir()  # which the first process has just made
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    RunLogger(tmp_path).experiment.log_metrics({"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.strategy=fsdp"], "The strategy `fsdp` requires a GPU accelerator"),
        (["--trainer.precision=bf16-true"], "Set trainer.precision to bf16-mixed"),
        (["--trainer.precision=16-true", "--trainer.devices=1"], "Set trainer.precision to 16-mixed"),
        (
            ["--trainer.sync_batchnorm=true", "--trainer.devices=2", "--trainer.strategy=ddp"],
            "synchronises batch normalisation between GPUs alone",
        ),
        (
            ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"],
            "Take SWA, which densepred has for it",
        ),
    ],
    ids=["fsdp", "bf16", "fp16", "sync", "swa"],
)
def test_switches_that_would_mislead_are_refused_with_what_to_take_instead(options, message, config, capsys):
    assert main(["fit", "--config", str(config), *options]) == 1
    assert message in capsys.readouterr().err
    assert not Path("runs/version_0/checkpoints").exists()
