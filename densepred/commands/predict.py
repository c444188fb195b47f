"""`densepred predict`: labels, depth and normals of anyone's pictures and videos, as files."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densepred.commands.exits import calibrated_confidences, tell_exits
from densepred.commands.predict_arguments import FAILED, SHEET
from densepred.commands.predict_arguments import add_arguments as add_arguments
from densepred.data.atomic import whole_file
from densepred.data.devkit import VOC_CLASSES
from densepred.data.label_codes import read_classes
from densepred.data.listing import read_list
from densepred.errors import ConfigurationError
from densepred.half_precision import computes_bfloat16
from densepred.inference.bulk import Bulk, BulkOptions, Outcome
from densepred.inference.cameras import AssumedCamera
from densepred.inference.contact import ContactSheet
from densepred.inference.inputs import Source, find_sources, only_named
from densepred.inference.large import LargeImages
from densepred.inference.options import InferenceOptions
from densepred.inference.output_files import DEFAULT, OutputFile, OutputFiles, output_kinds
from densepred.inference.prediction import Prediction
from densepred.inference.predictor import Predictor, chosen_device
from densepred.inference.published import PUBLISHED
from densepred.inference.scores import Scores
from densepred.inference.settings import claim, settings_of
from densepred.inference.voc_results import check_results, results_folder, voc_file, write_archive
from densepred.resume import find_checkpoint
from densepred.sample import Kind

METRICS = "metrics.json"
_TRUTH = {"labels": Kind.LABEL, "true_depth": Kind.DEPTH, "true_normals": Kind.NORMALS}


def run(arguments: argparse.Namespace) -> int:
    """Predicts, or checks results; 0 where nothing is wrong."""
    if arguments.check is not None:
        return _check(arguments)
    if arguments.calibrate:
        arguments.confidence = calibrated_confidences(arguments, lambda: _predictor(arguments)[0])
    predictor, networks = _predictor(arguments)
    if arguments.recursive and any(Path(one).resolve() == arguments.output.resolve() for one in arguments.input):
        raise ConfigurationError(
            f"--output {arguments.output} is the input too: its files would be predicted next time."
        )
    sources = find_sources(arguments.input, arguments.recursive, outside=arguments.output)
    if arguments.names is not None:
        sources = only_named(sources, read_list(arguments.names))
    kinds = _kinds(arguments, predictor)
    truth = {kind: folder for name, kind in _TRUTH.items() if (folder := getattr(arguments, name)) is not None}
    if arguments.half and not computes_bfloat16(predictor.device.type):
        print("--half would be hundreds of times slower on this processor, which has no arithmetic for it: left out.")
        arguments.half = False
    scores = Scores(predictor, truth, _label_classes(arguments.label_classes)) if truth else None
    files = _output(arguments, predictor, networks, kinds, sources)
    bulk, sheet = _bulk(arguments, predictor, files, sources, scores)
    for note in predictor.notes:
        print(f"Pictures are {note} (--short_side none leaves them as they are).")
    outcome = bulk.run(sources)
    if sheet is not None and len(sheet):
        _write_sheet(sheet, arguments.output / SHEET, networks)
    _tell(outcome, arguments.output, len(sources))
    tell_exits(predictor)
    if scores is not None:
        _tell_scores(scores, arguments.output / METRICS)
    faults = _finish_voc(arguments, sources, outcome) if arguments.format == "voc" else []
    return 1 if outcome.failed or faults else 0


def _predictor(arguments: argparse.Namespace) -> tuple[Predictor, list[Path | str]]:
    if bool(arguments.ckpt_path) == bool(arguments.weights):
        raise ConfigurationError(
            "predict: give either --ckpt_path with a checkpoint, or best or last (of --root), or --weights with "
            f"{PUBLISHED[2]} or another published network."
        )
    if not arguments.input:
        raise ConfigurationError("predict: give --input: pictures, videos, folders of them, patterns or lists.")
    device, options = chosen_device(arguments.device), _options(arguments)
    as_trained = arguments.short_side is None
    if arguments.weights:
        name, _, file = arguments.weights.partition("=")
        predictor = Predictor.published(name, device, file or None, options, as_trained)
        return predictor, [Path(file).expanduser() if file else name]
    paths = [find_checkpoint(name, arguments.root) for name in arguments.ckpt_path]
    return Predictor.load(paths, device, arguments.allow, options, as_trained), list(paths)


def _options(arguments: argparse.Namespace) -> InferenceOptions:
    """The options that are asked for; others stay at their defaults."""
    given: dict[str, Any] = {
        "flip": arguments.flip,
        "merge": arguments.merge,
        "mc_dropout": arguments.mc_dropout,
        "tile": arguments.tile,
        "overlap": _overlap(arguments.overlap),
        "crf": arguments.crf,
        "short_side": _short_side(arguments.short_side),
        "budget": arguments.budget,
        "confidence": tuple(arguments.confidence or ()),
    }
    if arguments.scales or arguments.short_sides:
        given["scales"] = tuple(arguments.scales or ())
        given["short_sides"] = tuple(arguments.short_sides or ())
    return InferenceOptions(**given)


def _overlap(text: str | None) -> int | float | None:
    if text is None:
        return None
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise ConfigurationError(f"--overlap {text}: expected pixels, or a share of the tile below 1.") from error


def _short_side(text: str | None) -> int | None:
    if text is None or text.lower() in ("none", "null"):
        return None
    if not text.isdecimal():
        raise ConfigurationError(f"--short_side {text}: expected a number of pixels, or none.")
    return int(text)


def _kinds(arguments: argparse.Namespace, predictor: Predictor) -> list[OutputFile]:
    several = len(arguments.ckpt_path) > 1 or arguments.mc_dropout > 1
    views = arguments.flip or len([*(arguments.scales or ()), *(arguments.short_sides or ())]) > 1
    camera = _camera(arguments)
    if arguments.format == "voc":
        image_set = arguments.names.stem if arguments.names else "test"
        extra = output_kinds(predictor.tasks, arguments.save, several or views, camera) if arguments.save else []
        return [voc_file(predictor.tasks, arguments.competition, image_set), *extra]
    save = arguments.save
    if save is None and several:
        sure = ["entropy"] if any(task.distribution for task in predictor.tasks) else []
        save = [kind for kind in (*DEFAULT, *sure, "uncertainty") if kind not in DEFAULT or _has(predictor, kind)]
    return output_kinds(predictor.tasks, save, several or views, camera)


def _camera(arguments: argparse.Namespace) -> AssumedCamera:
    given = arguments.intrinsics
    return AssumedCamera(arguments.field_of_view, None if given is None else tuple(given))


def _has(predictor: Predictor, word: str) -> bool:
    try:
        return bool(output_kinds(predictor.tasks, [word]))
    except ConfigurationError:
        return False


def _label_classes(text: str | None) -> list[str] | None:
    if text is None:
        return None
    if text == "voc":
        return VOC_CLASSES
    return [line.name for line in read_classes(Path(text).expanduser())]


def _output(
    arguments: argparse.Namespace,
    predictor: Predictor,
    networks: list[Path | str],
    kinds: list[OutputFile],
    sources: Sequence[Source],
) -> OutputFiles:
    root: Path = arguments.output
    planned = (kind.path(root, source.name) for source in sources if not source.is_video for kind in kinds)
    settings = settings_of(networks, _options(arguments), predictor.notes, _bulk_options(arguments), _camera(arguments))
    try:
        root.mkdir(parents=True, exist_ok=True)
        since = claim(root, settings, planned, arguments.overwrite)
    except OSError as error:
        raise ConfigurationError(
            f"--output {root}: cannot be written: {error.strerror or error}. Name a folder that can."
        ) from error
    return OutputFiles(root, kinds, since)


def _bulk(
    arguments: argparse.Namespace,
    predictor: Predictor,
    files: OutputFiles,
    sources: Sequence[Source],
    scores: Scores | None,
) -> tuple[Bulk, ContactSheet | None]:
    large = None if predictor.tiled is None else LargeImages(predictor, predictor.tiled, files, arguments.half)
    usual = [one for one in sources if not one.is_video and not (large is not None and large.takes(one.path))]
    shown = usual[: max(0, arguments.sheet)]
    there = files.is_current(files.root / SHEET, Path(SHEET))
    last = files.root / FAILED
    failed = "\n" + last.read_text(encoding="utf-8") if last.exists() else ""
    # those that failed last time, and have not been mended, do not make a new sheet of the others
    wanted = [
        one for one in shown if f"\n{one.path}: " not in failed or one.path.stat().st_mtime > last.stat().st_mtime
    ]
    anew = arguments.overwrite or not there or not all(files.finished(one.name, one.path) for one in wanted)
    on_sheet = frozenset(source.name for source in shown if anew)
    sheet = ContactSheet(predictor.tasks) if on_sheet else None
    watched = on_sheet if scores is None else frozenset(source.name for source in usual)

    def watch(source: Source, prediction: Prediction) -> None:
        if sheet is not None and source.name in on_sheet:
            sheet.add(source.name, prediction)
        if scores is not None:
            scores.add(source, prediction)

    bulk = Bulk(predictor, files, _bulk_options(arguments), watch, watched, scores is not None, large)
    return bulk, sheet


def _bulk_options(arguments: argparse.Namespace) -> BulkOptions:
    return BulkOptions(
        overwrite=arguments.overwrite,
        batch_size=arguments.batch_size,
        half=arguments.half,
        every=arguments.every,
        frames=arguments.frames,
    )


def _write_sheet(sheet: ContactSheet, path: Path, networks: list[Path | str]) -> None:
    with whole_file(path) as temporary:
        sheet.draw(" + ".join(_shown_name(network) for network in networks)).save(temporary, format="PNG")


def _shown_name(network: Path | str) -> str:
    if isinstance(network, str):
        return network
    inside = network.parent.name == "checkpoints"
    return f"{network.parents[1].name}/{network.name}" if inside else network.name


def _tell_scores(scores: Scores, path: Path) -> None:
    found = scores.found()
    plain = {
        task: {key: None if math.isnan(value) else value for key, value in values.items()}
        for task, values in found.items()
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
    for task, values in found.items():
        print(f"{task}, {values.pop('images'):.0f} pictures:")
        shown = {key: value for key, value in values.items() if not key.startswith("iou/")}
        print("\n".join(f"  {key:<24}{value:.4f}" for key, value in shown.items()))
    print(f"All of them: {path}")


def _tell(outcome: Outcome, output: Path, count: int) -> None:
    kept = f", {outcome.kept:,} of {count:,} were there already" if outcome.kept else ""
    rate = f" in {outcome.seconds:.1f} s ({outcome.rate:.1f} a second)" if outcome.predicted else ""
    print(f"{outcome.predicted:,} predicted{rate}{kept}. Written to {output}")
    for note, times in outcome.notes.items():
        print(f"  {times:,}: {note}")
    failed = output / FAILED
    if not outcome.failed:
        failed.unlink(missing_ok=True)
        return
    lines = [f"{path}: {message.removeprefix(f'{path}: ')}" for path, message in outcome.failed.items()]
    with whole_file(failed) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{len(lines)} of {count} failed (also in {failed}):", file=sys.stderr)
    print("\n".join(f"  {line}" for line in lines), file=sys.stderr)


def _finish_voc(arguments: argparse.Namespace, sources: Sequence[Source], outcome: Outcome) -> list[str]:
    """Packs the results and checks the archive."""
    if outcome.failed:
        print("No archive was packed: the server refuses incomplete results.", file=sys.stderr)
        return []
    image_set = arguments.names.stem if arguments.names else "test"
    pictures = {source.name: source.path for source in sources if not source.is_video}
    archive = write_archive(arguments.output, results_folder(arguments.competition, image_set), list(pictures))
    faults = check_results(archive, list(pictures), pictures)
    return _verdict(archive, faults, len(pictures))


def _check(arguments: argparse.Namespace) -> int:
    if arguments.names is None:
        raise ConfigurationError(
            "predict --check: give --names with the image set, such as ImageSets/Segmentation/test.txt."
        )
    names = read_list(arguments.names)
    images = None
    if arguments.input:
        found = only_named(find_sources(arguments.input, arguments.recursive), names)
        images = {source.name: source.path for source in found}
    return 1 if _verdict(arguments.check, check_results(arguments.check, names, images), len(names)) else 0


def _verdict(results: Path, faults: list[str], count: int) -> list[str]:
    if not faults:
        print(f"{results}: {count:,} results, nothing wrong with them.")
        return faults
    more = [f"  and {len(faults) - 20:,} more"] if len(faults) > 20 else []
    told = "\n".join([f"{results}: {len(faults):,} faults:", *(f"  {fault}" for fault in faults[:20]), *more])
    print(told, file=sys.stderr)
    return faults
