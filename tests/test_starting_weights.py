"""Which arguments a checkpoint makes superfluous."""

import pytest
from jsonargparse import Namespace

from densepred.starting_weights import without_starting_weights


def plain(value):
    return value.as_dict() if isinstance(value, Namespace) else value


@pytest.mark.parametrize("kind", [dict, Namespace])
def test_module_encoder_and_decoders_forget_where_they_started_and_nothing_else(kind):
    loss = kind(class_path="CrossEntropyLoss", init_args=kind(weights="frequencies.json"))
    arguments = kind(
        init_from="runs/a.ckpt",
        encoder=kind(class_path="VGGEncoder", init_args=kind(name="vgg16", weights="imagenet")),
        decoder=kind(class_path="ASPPDecoder", init_args=kind(weights="imagenet", dropout=0.5)),
        auxiliary=None,
        tasks=[loss],
    )
    forgotten = without_starting_weights(arguments)
    assert type(forgotten) is kind
    assert plain(forgotten) == {
        "init_from": None,
        "encoder": {"class_path": "VGGEncoder", "init_args": {"name": "vgg16", "weights": None}},
        "decoder": {"class_path": "ASPPDecoder", "init_args": {"weights": None, "dropout": 0.5}},
        "auxiliary": None,
        "tasks": [{"class_path": "CrossEntropyLoss", "init_args": {"weights": "frequencies.json"}}],
    }
    assert plain(arguments)["init_from"] == "runs/a.ckpt"
    assert plain(arguments)["encoder"]["init_args"]["weights"] == "imagenet"
