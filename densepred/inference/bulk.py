"""Many pictures and videos to files: read, predicted and written at once; broken ones are told and passed over."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from densepred.errors import ConfigurationError, DataError, UserError
from densepred.inference.contact import smaller
from densepred.inference.inputs import Source
from densepred.inference.large import LargeImages
from densepred.inference.output_files import OutputFiles
from densepred.inference.overlap import DoneBehind, done_ahead, drawn_ahead
from densepred.inference.photos import Photo, read_photo
from densepred.inference.prediction import Prediction
from densepred.inference.predictor import Predictor
from densepred.inference.videos import VideoFile, read_frames, video_facts

Watch = Callable[[Source, Prediction], None]

_WIDEST = 3840
_NO_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator|can't allocate memory|not enough memory", re.IGNORECASE)


@dataclass
class Outcome:
    """What became of the sources.

    Args:
        predicted: Pictures, and frames of videos, that were predicted.
        kept: Sources whose files were all there.
        failed: Why, by source.
        notes: What was done to pictures, and to how many.
        seconds: From the first to the last one.
    """

    predicted: int = 0
    kept: int = 0
    failed: dict[Path, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.predicted / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class BulkOptions:
    """How many pictures are predicted.

    Args:
        overwrite: Predict what has all its files, too, and replace them.
        batch_size: Pictures that follow each other and are of one size are predicted together, up to so many.
        half: Compute in half precision (bfloat16) where that pays.
        readers: Threads that read.
        writers: Threads that write.
        every: Of videos each so many-th frame.
        frames: Write the files of each frame of a video, too.
        progress: Show a bar.
    """

    overwrite: bool = False
    batch_size: int = 1
    half: bool = False
    readers: int = 2
    writers: int = 2
    every: int = 1
    frames: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "readers", "writers", "every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"--{name} is {getattr(self, name)}; expected at least 1.")


class Bulk:
    """Predicts sources one after the other, and writes what is wanted of each.

    A source that cannot be read or predicted is kept in the outcome, and the next one follows; a disk that cannot be
    written ends the work in one error. What has all its files is kept, unless a picture is watched for.

    Args:
        predictor: Predicts.
        files: Are written.
        options: How.
        watch: Sees each prediction of a picture, in order.
        watched: Names of sources to predict in any case, for `watch`; their files stay where they are there.
        evidence: Keep the evidence in what `watch` sees.
        large: Takes the pictures that are larger than memory; None predicts them like others.
    """

    def __init__(
        self,
        predictor: Predictor,
        files: OutputFiles,
        options: BulkOptions = BulkOptions(),
        watch: Watch | None = None,
        watched: frozenset[str] = frozenset(),
        evidence: bool = False,
        large: LargeImages | None = None,
    ) -> None:
        self.predictor = predictor
        self.files = files
        self.options = options
        self.watch = watch
        self.watched = watched
        self.evidence = evidence or files.needs("evidence")
        self.large = large
        self.outcome = Outcome()

    def run(self, sources: Sequence[Source]) -> Outcome:
        """Predicts all.

        Raises:
            DataError: If the output folder cannot be written.
        """
        begin = perf_counter()
        todo = [source for source in sources if self._is_wanted(source)]
        self.outcome.kept = len(sources) - len(todo)
        bar = tqdm(total=len(todo), unit=" images", disable=not self.options.progress, mininterval=0.2)
        try:
            with bar, DoneBehind[None](self.options.writers, 2 * self.options.writers) as writers:
                large = {source: None for source in todo if self.is_large(source)}
                self._pictures([one for one in todo if not one.is_video and one not in large], writers, bar)
                self._large(list(large), bar)
                self._videos([source for source in todo if source.is_video], bar)
        except OSError as error:
            raise self._disk_error(error) from error
        self.outcome.seconds = perf_counter() - begin
        return self.outcome

    def is_large(self, source: Source) -> bool:
        """Whether a source is a picture that is predicted by windows."""
        return self.large is not None and not source.is_video and self.large.takes(source.path)

    def _is_wanted(self, source: Source) -> bool:
        if self.options.overwrite or source.name in self.watched:
            return True
        if source.is_video:
            first = f"{source.name}/{1:06d}"
            there = self.files.is_current(self._video_path(source), source.path)
            return not (there and (not self.options.frames or self.files.finished(first, source.path)))
        if self.large is not None and self.large.takes(source.path):
            return not self.large.finished(source)
        return not self.files.finished(source.name, source.path)

    def _large(self, sources: Sequence[Source], bar: "tqdm[Any]") -> None:
        for source in sources:
            try:
                found = None if self.large is None else self.large.predict(source)
            except (UserError, RuntimeError, MemoryError) as error:
                self._fail(source, _told(error))
                continue
            finally:
                bar.update()
            self.outcome.predicted += 1
            self.outcome.notes.update(found.notes if found is not None else ())

    def _video_path(self, source: Source) -> Path:
        return self.files.root / "videos" / f"{source.name}.mp4"

    def _pictures(self, sources: Sequence[Source], writers: DoneBehind[None], bar: "tqdm[Any]") -> None:
        read = done_ahead(self._read, sources, self.options.readers, self.options.readers + self.options.batch_size)
        for batch in self._batches(read):
            for source, prediction in self._predicted(batch):
                writers.do(self._write, source, prediction)
                bar.update()
            bar.set_postfix_str(f"{len(self.outcome.failed)} failed" if self.outcome.failed else "", refresh=False)
        bar.update(len(sources) - bar.n)

    def _read(self, source: Source) -> tuple[Source, Photo | None]:
        try:
            return source, read_photo(source.path, self.predictor.channels)
        except UserError as error:
            self._fail(source, error)
            return source, None

    def _batches(self, read: Iterable[tuple[Source, Photo | None]]) -> Iterator[list[tuple[Source, Photo]]]:
        """Neighbours of one size and kind of number, as many as are predicted at once."""
        batch: list[tuple[Source, Photo]] = []
        for source, photo in read:
            if photo is None:
                continue
            if batch and _format(batch[0][1]) != _format(photo):
                yield batch
                batch = []
            batch.append((source, photo))
            if len(batch) == self.options.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _predicted(self, batch: Sequence[tuple[Source, Photo]]) -> Iterator[tuple[Source, Prediction]]:
        """Predictions of a batch; one by one where it fails as a whole."""
        try:
            predictions = self._predict([photo for _, photo in batch])
        except (UserError, RuntimeError, MemoryError) as error:
            if len(batch) > 1:
                for one in batch:
                    yield from self._predicted([one])
                return
            self._fail(batch[0][0], _told(error))
            return
        for (source, _), prediction in zip(batch, predictions, strict=True):
            self.outcome.predicted += 1
            self.outcome.notes.update((*prediction.notes, *self.files.notes(prediction)))
            yield source, prediction
            if self.watch is not None:
                try:
                    self.watch(source, prediction)
                except UserError as error:
                    self._fail(source, error)

    def _predict(self, photos: Sequence[Photo]) -> list[Prediction]:
        kind = self.predictor.device.type
        with torch.autocast(kind, torch.bfloat16) if self.options.half else nullcontext():
            return self.predictor.predict_batch(photos, self.evidence, self.files.needs("uncertainty"))

    def _write(self, source: Source, prediction: Prediction) -> None:
        try:
            self.files.write(source.name, prediction, None if self.options.overwrite else source.path)
        except UserError as error:
            self._fail(source, error)

    def _video(self, source: Source, bar: "tqdm[Any]") -> None:
        path = self._video_path(source)
        path.unlink(missing_ok=True)  # it ends last, and then says that its frames are there
        facts = video_facts(source.path)
        wanted = -(-facts.frames // self.options.every)
        bar.total += wanted - 1
        with (
            VideoFile(path, facts.rate / self.options.every) as video,
            DoneBehind[None](1, 2) as drawing,  # one thread keeps the frames in order
            DoneBehind[None](self.options.writers, 2 * self.options.writers) as writing,
        ):
            frames = read_frames(source.path, self.predictor.channels, self.options.every)
            for number, photo in drawn_ahead(frames, 4):
                prediction = self._predict([photo])[0]
                drawing.do(_draw, video, prediction)
                if self.options.frames:
                    writing.do(self.files.write, f"{source.name}/{number:06d}", prediction)
                self.outcome.predicted += 1
                bar.update()
        self.outcome.notes.update(self.predictor.notes)

    def _videos(self, sources: Sequence[Source], bar: "tqdm[Any]") -> None:
        for source in sources:
            try:
                self._video(source, bar)
            except (UserError, RuntimeError, MemoryError) as error:
                self._fail(source, _told(error))

    def _fail(self, source: Source, error: UserError) -> None:
        self.outcome.failed[source.path] = str(error)

    def _disk_error(self, error: OSError) -> DataError:
        where = error.filename or self.files.root
        return DataError(
            f"{where}: cannot be written: {error.strerror or error}. What is finished stays; make room, or name "
            "another --output, and run the same again: it goes on from here."
        )


def _draw(video: VideoFile, prediction: Prediction) -> None:
    video.add(smaller(prediction.render(), _WIDEST))


def _format(photo: Photo) -> tuple[torch.Size, torch.dtype]:
    return photo.image.shape, photo.image.dtype


def _told(error: Exception) -> UserError:
    """What the user can do about it; errors that are none of his are raised on."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(str(error)):
        return DataError(
            "The memory does not suffice for a picture of this size. Predict it in tiles (--tile 1024) or smaller "
            "(--short_side 1024)."
        )
    raise error
