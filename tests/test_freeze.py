"""Stages of any encoder, and freezing them."""

from functools import partial
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from densepred.callbacks.freeze import Freeze
from densepred.decoders.fcn import FCNDecoder
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.fcdensenet import FCDenseNetEncoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.encoders.segnet import SegNetBasicEncoder
from densepred.encoders.stages import encoder_stages
from densepred.encoders.torchvision import TorchvisionEncoder
from densepred.encoders.unet import UNetEncoder
from densepred.encoders.vgg import VGGEncoder
from densepred.encoders.vgg_dilated import DilatedVGGEncoder
from densepred.errors import ConfigurationError
from densepred.module import DensePredictor
from densepred.tasks.segmentation import Segmentation
from tests.test_module import loader, trainer

ENCODERS = {
    "resnet18": lambda: ResNetEncoder("resnet18"),
    "vgg11": lambda: VGGEncoder("vgg11"),
    "vgg_unpadded": lambda: VGGEncoder("vgg11", fully_connected=True, padded=False, maps="pool"),
    "dilated": lambda: DilatedVGGEncoder("vgg16"),
    "unet": lambda: UNetEncoder(widths=(4, 8, 8)),
    "segnet": SegNetBasicEncoder,
    "fcdensenet": lambda: FCDenseNetEncoder("fc_densenet56"),
    "densenet": lambda: TorchvisionEncoder("densenet121"),
    "swin": lambda: TorchvisionEncoder("swin_t"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_stages_of_any_encoder_hold_each_part_once_and_leave_it_as_it_was(name):
    with torch.device("meta"):
        encoder = ENCODERS[name]()
    encoder.train()
    next(encoder.children()).eval()
    before = [module.training for module in encoder.modules()]
    stages = encoder_stages(encoder)
    assert len(stages) == len(encoder.spec.channels)
    assert all(stage.parameters for stage in stages)
    held = [id(parameter) for stage in stages for parameter in stage.parameters]
    assert sorted(held) == sorted(id(parameter) for parameter in encoder.parameters())
    modules = [id(module) for stage in stages for module in stage.modules]
    assert sorted(modules) == sorted(id(module) for module in encoder.modules())
    assert [module.training for module in encoder.modules()] == before
    assert not any(module._forward_hooks for module in encoder.modules())


def test_a_map_depends_on_the_parameters_of_its_stage_and_no_finer_map_does():
    encoder = UNetEncoder(widths=(4, 8, 8)).eval()
    features = encoder(torch.rand(1, 3, 64, 64))
    for index, stage in enumerate(encoder_stages(encoder)):
        for depth, feature in enumerate(features[: index + 1]):
            grads = torch.autograd.grad(feature.sum(), stage.parameters, retain_graph=True, allow_unused=True)
            assert all((grad is not None) == (depth == index) for grad in grads)


def module(**options) -> DensePredictor:
    decoder = options.pop("decoder", partial(UNetDecoder, widths=(8, 8, 8, 8)))
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    return DensePredictor(ResNetEncoder("resnet18"), decoder, [Segmentation(4)], optimizer=sgd, **options)


class Record(pl.Callback):
    """The state of the network after each epoch; somebody calls `train()` in between."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, module, *args):
        module.train()

    def on_train_epoch_end(self, trainer, module):
        self.states.append({key: value.clone() for key, value in module.state_dict().items()})


def moved(before: dict, after: dict) -> set[str]:
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def fit(network, folder, *callbacks, **options):
    record = Record()
    start = {key: value.clone() for key, value in network.state_dict().items()}
    run = trainer(folder, callbacks=[*callbacks, record], **{"enable_checkpointing": False, **options})
    run.fit(network, loader())
    return [start, *record.states], run


def test_a_frozen_encoder_keeps_its_weights_and_statistics_while_the_decoder_learns(tmp_path):
    network = module(decoder=partial(FCNDecoder, finest_stride=32))
    states, _ = fit(network, tmp_path, Freeze())
    assert moved(*states) == {"network.decoders.segmentation.score.weight", "network.decoders.segmentation.score.bias"}
    assert all(parameter.grad is None for parameter in network.network.encoder.parameters())


def test_the_first_stages_rest_and_the_later_ones_learn_statistics_included(tmp_path):
    states, _ = fit(module(), tmp_path, Freeze(stages=3))
    rested = {"conv1", "bn1", "layer1", "layer2"}
    changed = moved(*states)
    for key in states[0]:
        if key.startswith("network.encoder.") and key.count(".") > 2:
            assert (key in changed) == (key.split(".")[2] not in rested), key


def test_what_rests_drops_nothing(tmp_path):
    encoder = UNetEncoder(widths=(4, 8, 8), dropout=0.5)
    freeze, seen = Freeze(), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            seen.append({type(part).__name__: part.training for part in encoder.modules()})

    network = DensePredictor(encoder, PointwiseDecoder, [Segmentation(4)])
    trainer(tmp_path, callbacks=[freeze, Watch()], enable_checkpointing=False).fit(network, loader())
    assert seen
    assert not any(value for each in seen for value in each.values())


def test_it_learns_from_the_epoch_it_is_told_and_freezes_step_by_step(tmp_path):
    states, run = fit(module(), tmp_path, Freeze(stages=2, until_epoch=2), Freeze(until_epoch=1), max_epochs=3)
    learned = [
        {key.split(".")[2] for key in moved(before, after) if key.startswith("network.encoder.")}
        for before, after in pairwise(states)
    ]
    deep = {"layer2", "layer3", "layer4"}
    assert learned == [set(), deep, deep | {"conv1", "bn1", "layer1"}]
    optimizer = run.optimizers[0]
    assert len(optimizer.state) == len(list(run.lightning_module.parameters()))


def test_norms_alone_can_be_frozen_from_an_epoch_on(tmp_path):
    network = module()
    states, _ = fit(network, tmp_path, Freeze(norms_only=True, from_epoch=1), max_epochs=2)
    norms = {
        f"{path}.{name}"
        for path, layer in network.named_modules()
        if path.startswith("network.encoder.") and isinstance(layer, nn.BatchNorm2d)
        for name in layer.state_dict()
    }
    first, second = moved(*states[:2]), moved(*states[1:])
    assert norms <= first
    assert not norms & second
    assert {key for key in first if "conv" in key} <= second


@pytest.mark.parametrize("cut", [1, 3])
def test_a_run_interrupted_before_or_after_unfreezing_ends_as_if_it_was_not(tmp_path, cut):
    whole = module()
    states, _ = fit(whole, tmp_path / "whole", Freeze(stages=3, until_epoch=2), max_epochs=4)
    torch.manual_seed(0)
    halves = module()
    halves.load_state_dict(states[0])
    _, first = fit(halves, tmp_path / "cut", Freeze(stages=3, until_epoch=2), max_epochs=cut)
    first.save_checkpoint(tmp_path / "cut.ckpt")
    resumed = module()
    run = trainer(
        tmp_path, max_epochs=4, enable_checkpointing=False, callbacks=[Freeze(stages=3, until_epoch=2), Record()]
    )
    run.fit(resumed, loader(), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert moved(states[-1], resumed.state_dict()) == set()


def test_a_second_fit_without_it_trains_everything_that_can_be_trained(tmp_path):
    network = module()
    freeze = Freeze(until_epoch=1)
    fit(network, tmp_path, freeze, max_epochs=1)
    states, _ = fit(network, tmp_path, freeze, max_epochs=2)
    assert "network.encoder.conv1.weight" in moved(*states[1:])


def test_more_stages_than_the_encoder_has_and_epochs_that_are_none_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"ResNetEncoder has 5, one for each map. Give 1 to 5"):
        fit(module(), tmp_path, Freeze(stages=6))
    with pytest.raises(ConfigurationError, match="ends what from_epoch 3 has not begun"):
        Freeze(until_epoch=2, from_epoch=3)
    with pytest.raises(ConfigurationError, match="expected 1 or more"):
        Freeze(stages=0)
