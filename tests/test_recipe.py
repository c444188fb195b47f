import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch

from densepred.decoders.pointwise import PointwiseDecoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.recipe import Recorded, recipe


class Part(Recorded):
    def __init__(self, width: int, sizes: tuple[int, ...] = (1,), inner: "Part | None" = None) -> None:
        self.width = width
        self.sizes = sizes


def test_a_part_remembers_its_arguments_by_name_and_nested():
    plain = recipe(Part(3, sizes=(1, 2), inner=Part(width=4)))
    here = f"{__name__}.Part"
    assert plain == {
        "class_path": here,
        "init_args": {"width": 3, "sizes": [1, 2], "inner": {"class_path": here, "init_args": {"width": 4}}},
    }


def test_numpys_numbers_become_plain_ones_that_a_checkpoint_may_hold(tmp_path):
    weights = np.array([0.5, 2.0])
    plain = recipe(Part(np.int64(3), sizes=(weights[0], np.float32(1)), inner=weights))["init_args"]
    assert plain == {"width": 3, "sizes": [0.5, 1.0], "inner": [0.5, 2.0]}
    torch.save(plain, tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True) == plain


@pytest.mark.parametrize("again", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_copies_remember_too(again):
    assert again(Part(3)).init_args == {"width": 3}


def test_a_decoder_class_and_a_partial_of_it_become_class_paths():
    path = "densepred.decoders.pointwise.PointwiseDecoder"
    assert recipe(PointwiseDecoder) == {"class_path": path}
    assert recipe(partial(PointwiseDecoder, dropout=0.5)) == {"class_path": path, "init_args": {"dropout": 0.5}}
    decoder = partial(PointwiseDecoder, dropout=0.5)(FeatureSpec((4,), (1,)), 2)
    assert decoder.init_args["dropout"] == 0.5


@pytest.mark.parametrize("value", [lambda spec, planes: None, partial(Part, 3)])
def test_what_cannot_be_written_down_is_refused_by_name(value):
    with pytest.raises(ConfigurationError, match=r"decoder.*cannot be written.*functools.partial"):
        recipe(value, "decoder")
