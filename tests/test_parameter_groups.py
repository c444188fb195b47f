"""Which parameters learn at which rate, by the recipes of the papers."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from densepred.decoders.fcn import FCNDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.errors import ConfigurationError
from densepred.module import DensePredictor
from densepred.parameter_groups import RateScales, parameter_groups
from densepred.resume import keep_configured_rates
from densepred.schedules import PolyLR
from densepred.tasks.depth import Depth
from densepred.tasks.segmentation import Segmentation
from tests.test_module import loader, trainer

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)


def resnet(**options) -> DensePredictor:
    decoder = partial(UNetDecoder, widths=(8, 8, 8, 8))
    return DensePredictor(ResNetEncoder("resnet18"), decoder, [Segmentation(4)], **{"optimizer": SGD, **options})


def treatment(module: DensePredictor) -> dict[str, tuple[float, float]]:
    """Rate and decay of each of the module's parameters, by name."""
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in module.build_optimizer().param_groups
        for parameter in group["params"]
    }
    return {name: found[id(parameter)] for name, parameter in module.named_parameters()}


def test_the_rates_of_fcn_are_twice_for_biases_which_do_not_decay():
    vgg = DensePredictor(
        VGGEncoder("vgg11", maps="pool"),
        partial(FCNDecoder, finest_stride=8),
        [Segmentation(4)],
        optimizer=SGD,
        bias_lr_scale=2,
        decay_norms_and_biases=False,
    )
    for name, (rate, decay) in treatment(vgg).items():
        assert (rate, decay) == ((0.2, 0) if name.endswith("bias") else (0.1, 0.01)), name


def test_the_rates_of_deeplab_are_10_and_20_times_the_encoders_in_its_scores_alone():
    found = treatment(resnet(bias_lr_scale=2, lr_scales={"decoders.*.score.*": 10}))
    assert found["network.decoders.segmentation.score.weight"] == (pytest.approx(1.0), 0.01)
    assert found["network.decoders.segmentation.score.bias"] == (pytest.approx(2.0), 0.01)
    others = {value for name, value in found.items() if ".score." not in name}
    assert others == {(0.1, 0.01)}  # every bias else is that of a norm, which keeps its rate


def test_norms_and_biases_do_not_decay_where_told_so_and_all_else_does():
    module = resnet(decay_norms_and_biases=False)
    found = treatment(module)
    norms = {
        f"{path}.{name}"
        for path, layer in module.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        for name, _ in layer.named_parameters()
    }
    free = {name for name, (_, decay) in found.items() if decay == 0}
    assert free == norms | {name for name in found if name.endswith("bias")}
    assert {rate for rate, _ in found.values()} == {0.1}


def test_groups_hold_every_parameter_once_under_different_names_frozen_ones_included():
    module = resnet(
        bias_lr_scale=2, encoder_lr_scale=0.1, decoder_lr_scale=3, decay_norms_and_biases=False,
        lr_scales={"*.conv1.weight": 5, "decoders.*": 7},
    )  # fmt: skip
    module.network.encoder.layer1.requires_grad_(False)
    groups = module.build_optimizer().param_groups
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in module.parameters())
    assert names == [group["name"] for group in module.build_optimizer().param_groups]


def test_what_a_loss_learns_itself_is_a_group_of_its_own_that_never_decays():
    module = resnet()
    module.register_parameter("log_variances", nn.Parameter(torch.zeros(3)))
    assert treatment(module)["log_variances"] == (0.1, 0.0)
    groups = parameter_groups(module, RateScales(decoder=10))
    assert [(group.name, group.lr_scale) for group in groups] == [("encoder", 1), ("decoder", 10), ("rest", 1)]


def test_a_pattern_that_matches_nothing_is_refused_with_names_that_there_are():
    with pytest.raises(ConfigurationError, match=r"'decoders.classifier.\*'. Names are such as encoder.conv1.weight"):
        resnet(lr_scales={"decoders.classifier.*": 10}).build_optimizer()


class Batches(pl.LightningDataModule):
    batch_size = 2

    def train_dataloader(self):
        return loader(batch_size=self.batch_size)


def test_the_rate_is_scaled_to_the_images_of_a_step_and_said_once(tmp_path, capsys):
    module = resnet(reference_batch=16, encoder_lr_scale=0.5)
    run = trainer(tmp_path, max_steps=1, accumulate_grad_batches=2, enable_checkpointing=False)
    run.fit(module, datamodule=Batches())
    # 2 x 2 of 16 images
    assert [group["lr"] for group in run.optimizers[0].param_groups] == pytest.approx([0.0125, 0.025])
    assert capsys.readouterr().out.count("learning rate x 0.25: configured for 16 images a step, here 4") == 1


def test_scaling_to_the_batch_needs_a_batch_size(tmp_path):
    with pytest.raises(ConfigurationError, match="a datamodule with a batch_size, which is None"):
        trainer(tmp_path).fit(resnet(reference_batch=16), loader())


def test_a_schedule_without_an_end_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="needs to know when training ends"):
        trainer(tmp_path, max_epochs=-1, max_steps=-1, max_time="00:00:01:00").fit(
            resnet(lr_scheduler=PolyLR), loader()
        )


def test_gradients_are_clipped_to_the_norm_that_the_trainer_is_told(tmp_path):
    norms = []

    class Spy(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))

    module = resnet()
    run = trainer(tmp_path, max_steps=1, gradient_clip_val=1e-3, callbacks=[Spy()], enable_checkpointing=False)
    run.fit(module, loader())
    # the step's gradients are still there: they are emptied before the next one
    norms.append(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
    assert norms[0] > 1e-2
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_decay_of_adamw_is_decoupled_from_the_gradient_and_adams_is_not():
    """One step at gradient g: AdamW takes lr * sign(g) and shrinks by lr * decay; Adam's sign is of g + decay * w."""
    ends = {}
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        module = resnet(optimizer=partial(kind, lr=0.1, weight_decay=0.5))
        optimizer = module.build_optimizer()
        weight = module.network.decoders["segmentation"].score.weight
        nn.init.constant_(weight, 2.0)
        weight.grad = torch.full_like(weight, 0.25)
        optimizer.step()
        ends[kind] = weight.mean().item()
    assert ends[torch.optim.Adam] == pytest.approx(2 - 0.1)  # the first step of Adam is of length lr, decay or not
    assert ends[torch.optim.AdamW] == pytest.approx(2 * (1 - 0.1 * 0.5) - 0.1)


def test_a_run_continues_where_the_multipliers_were_changed():
    """Momentum follows its parameter into the new groups; rates and decay are those configured now."""
    old, new = resnet(lr_scheduler=PolyLR), resnet(bias_lr_scale=2, decay_norms_and_biases=False, lr_scheduler=PolyLR)
    optimizer = old.build_optimizer()
    schedule = PolyLR(optimizer, 10)
    for number, parameter in enumerate(old.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    for _ in range(5):
        optimizer.step()
        schedule.step()
    checkpoint = {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [schedule.state_dict()]}
    keep_configured_rates(checkpoint, new.build_optimizer())
    continued = new.build_optimizer()
    its_schedule = PolyLR(continued, 10)
    continued.load_state_dict(checkpoint["optimizer_states"][0])
    its_schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    for before, after in zip(old.parameters(), new.parameters(), strict=True):
        assert torch.equal(optimizer.state[before]["momentum_buffer"], continued.state[after]["momentum_buffer"])
    fresh = new.build_optimizer()
    uninterrupted = PolyLR(fresh, 10)
    for _ in range(5):
        fresh.step()
        uninterrupted.step()
    for _ in range(2):
        for each in (fresh, continued):
            each.step()
        uninterrupted.step()
        its_schedule.step()
        rates = [[(group["lr"], group["weight_decay"]) for group in each.param_groups] for each in (fresh, continued)]
        assert np.array(rates[1]) == pytest.approx(np.array(rates[0]))


def test_depth_alone_trains_by_the_default_optimizer():
    groups = DensePredictor(ResNetEncoder("resnet18"), UNetDecoder, [Depth()]).build_optimizer().param_groups
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("encoder", 3e-4, 0.01),
        ("decoder", 3e-4, 0.01),
    ]
