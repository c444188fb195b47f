"""`densepred samples`: what the transforms make of the data, to be looked at before training."""

import argparse
from pathlib import Path
from typing import Any

from densepred.callbacks.panels import write_whole
from densepred.callbacks.sheet import draw_sheet
from densepred.callbacks.shots import row_of
from densepred.callbacks.targets import depth_range, drawing_tasks, target_shots
from densepred.commands.arguments import import_parts
from densepred.commands.check_data import build_data
from densepred.commands.describe import is_checkpoint, read_config
from densepred.data.datamodule import DenseDataModule, Split
from densepred.data.dataset import DenseDataset
from densepred.data.sampler import EpochSampler
from densepred.errors import ConfigurationError, DataError
from densepred.vouched import add_allow, named_in, only_vouched

PASSES_OPTIONS_ON = True
"""Options of the data may stand on the command line, as in `fit`."""

WIDEST = 12
"""Pictures side by side."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run's configuration, or a datamodule by its options; which samples, and where the sheet goes."""
    parser.usage = (
        "densepred samples [--config FILE] [--data CLASS] [--data.OPTION VALUE ...] [--split SPLIT] [--count N] "
        "[--repeat K] [--seed N] [--output FILE]"
    )
    parser.epilog = (
        "A preset's strength: --data.train_transforms.strength 2. Another: --data.train_transforms DepthAugmentation "
        "--data.train_transforms.size '[416, 544]'."
    )
    parser.add_argument(
        "--config", "-c", action="append", default=[], type=Path, metavar="FILE", help="a run's YAML, or a checkpoint"
    )
    add_allow(parser)
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=4, metavar="N", help="samples (default: %(default)s)")
    parser.add_argument(
        "--repeat",
        type=int,
        default=3,
        metavar="K",
        help="views of each, those of the first K epochs of training (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="other samples and other views; default: the data's")
    parser.add_argument("--output", type=Path, default=Path("samples.png"), metavar="FILE", help="default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Draws the sheet and says where it is."""
    for name, least in {"count": 1, "repeat": 0}.items():
        if getattr(arguments, name) < least:
            raise ConfigurationError(
                f"samples: --{name} is {getattr(arguments, name)}; expected a number of at least {least}."
            )
    if arguments.output.suffix.lower() != ".png":
        raise ConfigurationError(f"samples: --output is {arguments.output}; expected the name of a .png file.")
    import_parts()
    vouched = [*arguments.allow, *named_in(arguments.options)]
    configs = [read_config(path, "data", vouched) for path in arguments.config]
    with only_vouched(vouched if any(map(is_checkpoint, arguments.config)) else None):
        data = build_data(configs, arguments.options, "samples")
    if arguments.seed is not None:
        data.seed = arguments.seed
    plain, changed = _data_sets(data, arguments.split)
    views = arguments.repeat if arguments.split == "train" else min(arguments.repeat, 1)
    views = 0 if changed is None else views
    samples: list[dict[str, Any]] = []
    words: list[str] = []
    for index in _indices(len(plain), arguments.split, arguments.count, data.seed):
        samples.append(plain[index])
        words.append(f"{samples[-1].get('name', index)}, as read")
        if changed is not None:
            samples += [changed[epoch, index] for epoch in range(views)]
            words += [f"view {epoch + 1}" for epoch in range(views)]
    tasks = drawing_tasks(samples, plain.kinds, data.classes, _label_tasks(configs), data.palettes)
    titles = [_title(said, sample, depth_range(sample, tasks)) for said, sample in zip(words, samples, strict=True)]
    shots, legends = target_shots(list(zip(titles, samples, strict=True)), tasks)
    # a sample and its views stand side by side, or, where that is too wide, below each other
    across = 1 + views if (1 + views) * (1 + len(tasks)) <= WIDEST else 1
    heading = f"{type(data).__name__}, {arguments.split}"
    write_whole(draw_sheet([row_of(shot, tasks) for shot in shots], heading, legends, across), arguments.output)
    print(_summary(arguments, data, len(samples) // (1 + views), len(plain), views))
    return 0


def _data_sets(data: DenseDataModule, split: Split) -> tuple[DenseDataset, DenseDataset | None]:
    """A split as it is read, and with its transforms; none where it has none."""
    transforms = data.train_transforms if split == "train" else data.eval_transforms
    plain = data.dataset(split, None)
    changed = None if transforms is None else data.dataset(split, transforms)
    for dataset in (plain, changed):
        if dataset is not None:
            dataset.kinds = data.kinds
    if not len(plain):
        raise DataError(f"samples: the {split} split of {type(data).__name__} is empty: no sample is listed in it.")
    return plain, changed


def _indices(length: int, split: Split, count: int, seed: int) -> list[int]:
    """The first samples: of training as its first epoch draws them, of the other splits in order."""
    order = [index for _, index in EpochSampler(length, seed)] if split == "train" else list(range(length))
    return order[:count]


def _label_tasks(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a run's tasks say, without building them: what their losses need may not be there yet."""
    tasks = (((config.get("model") or {}).get("init_args") or {}).get("tasks") or [] for config in configs)
    options = [task.get("init_args") or {} for some in tasks for task in some if isinstance(task, dict)]
    return [{"name": "segmentation"} | given for given in options]


def _title(words: str, sample: dict[str, Any], depth: str) -> str:
    height, width = sample["image"].shape[-2:]
    return ", ".join(filter(None, (words, f"{height} x {width}", depth)))


def _summary(arguments: argparse.Namespace, data: DenseDataModule, shown: int, of: int, views: int) -> str:
    option = "train_transforms" if arguments.split == "train" else "eval_transforms"
    seen = f"as read and in {views} view{'s'[: views != 1]} each" if views else "as read"
    if not views and arguments.repeat:
        seen += f"; the data have no {option}"
    return f"{arguments.output}: {shown} of {of} samples, {seen} (seed {data.seed})."
