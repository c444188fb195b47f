"""The training pipeline, tried on a few samples before the first epoch does."""

import traceback
from collections.abc import Iterator
from pathlib import Path

from densepred.checking.look import Remark
from densepred.data.datamodule import DenseDataModule
from densepred.errors import UserError

_TRIED = 4


def pipeline_faults(data: DenseDataModule, usable: list[int]) -> Iterator[Remark]:
    """What stops the transforms, or the batches made of what they yield.

    Args:
        data: Whose training pipeline; its check of files is left out, for they have been looked at.
        usable: Training samples that can be read.
    """
    data.check = "none"
    try:
        loader = data.train_dataloader()
        many = max(1, min(data.batch_size, len(usable), _TRIED))
        # evenly spread: images of different sizes come from different places of a list
        tried = [loader.dataset[0, usable[i * len(usable) // many]] for i in range(many)]
        if loader.collate_fn is not None:
            loader.collate_fn(tried)
    except UserError as error:
        yield Remark("transforms", f"train: {error}")
    except Exception as error:  # a transform of the user's own may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        yield Remark("transforms", f"train: the transforms fail: {type(error).__name__}: {error} ({place}).")
