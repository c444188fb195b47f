"""Videos frame by frame, by what OpenCV brings along."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import cv2
import numpy as np
from torch import Tensor

from densepred.data.images import unreadable
from densepred.errors import DataError
from densepred.inference.photos import Photo, read_photo


class VideoFacts(NamedTuple):
    """What a video's file says of it.

    Args:
        frames: Their number; 0 where the file does not say.
        rate: Frames a second.
    """

    frames: int
    rate: float


def video_facts(path: Path) -> VideoFacts:
    """Number and rate of a video's frames.

    Raises:
        DataError: If it cannot be opened.
    """
    capture = _opened(path)
    frames, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    sensible = rate if 0 < rate < 1000 else 25.0
    return VideoFacts(max(0, int(frames)), sensible)


def read_frames(path: Path, channels: int = 3, every: int = 1) -> Iterator[tuple[int, Photo]]:
    """The frames of a video with their numbers, from 1, upright as the video says.

    Args:
        path: The file.
        channels: What the network takes.
        every: Each so many-th frame alone.

    Raises:
        DataError: If it cannot be opened, or no frame of it can be read.
    """
    capture = _opened(path)
    try:
        number = 0
        while capture.grab():
            number += 1
            if (number - 1) % every:
                continue
            good, frame = capture.retrieve()
            if good:
                yield number, read_photo(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), channels)
    finally:
        capture.release()
    if not number:
        raise DataError(unreadable(path, "no frame of it can be decoded"))


def _opened(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise DataError(unreadable(path, "it is damaged, no video, or of a codec that OpenCV lacks"))
    return capture


class VideoFile:
    """Writes pictures as an MP4, which is there whole or not at all: as a context, which ends it.

    Args:
        path: Ends in .mp4.
        rate: Frames a second.

    Raises:
        DataError: If it cannot be written.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        # the ending tells OpenCV the format
        self.temporary = path.with_name(f".unfinished.{path.name}")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._count = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, picture: Tensor) -> None:
        """One more frame (3, H, W), uint8 RGB; all of one size. Odd sides lose a row or column: the codec's rule."""
        frame = picture.permute(1, 2, 0).numpy()
        height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
        if self._writer is None:
            self._size = (height, width)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.temporary), code, self.rate, (width, height))
            if not self._writer.isOpened():
                raise DataError(
                    f"{self.path}: cannot be written. Is the folder writable, and does this OpenCV have MP4?"
                )
        self._writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        try:
            if kind is None and self._count:
                self._require_whole()
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)

    def _require_whole(self) -> None:
        # OpenCV does not tell of a full disk
        written = video_facts(self.temporary).frames if self.temporary.is_file() else 0
        if written != self._count:
            raise DataError(f"{self.path}: {written} of {self._count} frames could be written. Is the disk full?")
