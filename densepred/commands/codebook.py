"""`densepred codebook`: codewords fitted to the normals of a training set, as a file."""

import argparse
import json
from pathlib import Path

import numpy as np

from densepred.codewords import KEY, fit_codewords, hemisphere_codewords, triangulate
from densepred.commands.arguments import import_parts
from densepred.commands.check_data import build_data
from densepred.commands.describe import is_checkpoint, read_config
from densepred.data.atomic import whole_file
from densepred.data.dataset import DenseDataset
from densepred.data.listing import evenly
from densepred.errors import DataError
from densepred.vouched import add_allow, named_in, only_vouched

PASSES_OPTIONS_ON = True
"""Options of the data may stand on the command line, as in `fit`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run's configuration, or a datamodule by its options; how many codewords, of how many normals."""
    parser.usage = "densepred codebook [--config FILE] [--data CLASS] [--data.OPTION VALUE ...] --output FILE"
    parser.epilog = "The file is what `codebook` of the task CodebookNormals takes: --model.tasks.codebook FILE."
    parser.add_argument(
        "--config", "-c", action="append", default=[], type=Path, metavar="FILE", help="a run's YAML, or a checkpoint"
    )
    add_allow(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the JSON to write")
    parser.add_argument(
        "--codewords", type=int, default=40, metavar="K", help="how many (default: %(default)s; published: 20 and 40)"
    )
    parser.add_argument("--target", default="normals", metavar="KEY", help="of the sample (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="look at N training samples, evenly spread")
    parser.add_argument(
        "--pixels", type=int, default=500, metavar="N", help="drawn from each sample (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of pixels and start (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Fits the codewords, writes them and says how well they stand for the normals."""
    import_parts()
    vouched = [*arguments.allow, *named_in(arguments.options)]
    configs = [read_config(path, "data", vouched) for path in arguments.config]
    with only_vouched(vouched if any(map(is_checkpoint, arguments.config)) else None):
        data = build_data(configs, arguments.options, "codebook")
    data.prepare_data()
    # as they are on disk: what training does to them turns them by little
    dataset = data.dataset("train", None)
    normals = drawn_normals(dataset, arguments.target, arguments.pixels, arguments.limit, arguments.seed)
    codewords = fit_codewords(normals, arguments.codewords, arguments.seed)
    triangulate(codewords)  # refuses normals of too few directions before anything is written
    record = {
        KEY: codewords.round(6).tolist(),
        "normals": len(normals),
        "data": type(data).__name__,
        "mean_angle_to_nearest": round(mean_angle(normals, codewords), 3),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(arguments.output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    even = mean_angle(normals, hemisphere_codewords(arguments.codewords))
    print(
        f"{len(codewords)} codewords of {len(normals):,} normals are in {arguments.output}: the nearest is "
        f"{record['mean_angle_to_nearest']:.1f} degrees away in the mean (evenly spread ones: {even:.1f})."
    )
    return 0


def drawn_normals(dataset: DenseDataset, target: str, pixels: int, limit: int | None, seed: int) -> np.ndarray:
    """Known normals of some pixels of each sample.

    Args:
        dataset: Yields samples of tensors.
        target: Their key.
        pixels: Of each sample, at most.
        limit: So many samples, evenly spread; all by default.
        seed: Of the draw.

    Shape:
        returns: (N, 3).

    Raises:
        DataError: If samples have no such key, or nothing is known in them.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for index in evenly([str(i) for i in range(len(dataset))], limit):
        sample = dataset[int(index)]
        if target not in sample:
            raise DataError(f"codebook: samples have no {target!r}, only {', '.join(sample)}. Name another --target.")
        vectors = np.asarray(sample[target], np.float64).reshape(3, -1).T
        known = vectors[(vectors != 0).any(1) & np.isfinite(vectors).all(1)]
        drawn.append(known[rng.permutation(len(known))[:pixels]])
    normals = np.concatenate(drawn) if drawn else np.zeros((0, 3))
    if not len(normals):
        raise DataError(f"codebook: no {target} are known in any of the {len(drawn)} training samples.")
    return normals


def mean_angle(normals: np.ndarray, codewords: np.ndarray) -> float:
    """Mean angle from each normal to its nearest codeword, in degrees."""
    cosine = (normals @ codewords.T).max(1).clip(-1, 1)
    return float(np.degrees(np.arccos(cosine)).mean())
