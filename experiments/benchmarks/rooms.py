"""How fast rooms are rendered, and how close normals from their depth come to the exact ones.

Run: python experiments/benchmarks/rooms.py [--size 240 320] [--scenes 40]
"""

import argparse
import time

import cv2
import numpy as np

from densepred.data.rooms import Rooms
from densepred.geometry import normals_from_depth


def milliseconds(rooms: Rooms, repeats: int = 3) -> tuple[float, float]:
    """CPU time of a scene on one core: mean and maximum over the scenes, each the best of some repeats."""
    best = np.full(len(rooms), np.inf)
    for _ in range(repeats):
        for index in range(len(rooms)):
            start = time.process_time()
            rooms.read(index)
            best[index] = min(best[index], 1000 * (time.process_time() - start))
    return float(best.mean()), float(best.max())


def angles(rooms: Rooms, window: int, margin: int) -> np.ndarray:
    """Degrees between normals from depth and exact ones, `margin` pixels and more from every edge (0: everywhere)."""
    errors = []
    for index in range(len(rooms)):
        sample = rooms.read(index)
        normals = normals_from_depth(sample["depth"], sample["intrinsics"], window)
        exact = sample["normals"]
        kernel = np.ones((3, 3), np.uint8)
        turn = np.stack([cv2.morphologyEx(exact[..., c], cv2.MORPH_GRADIENT, kernel) for c in range(3)]).max(0) > 0.3
        jump = cv2.morphologyEx(sample["depth"], cv2.MORPH_GRADIENT, kernel) > 0.1 * sample["depth"]
        reach = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
        edge = cv2.dilate((turn | jump).astype(np.uint8), reach) if margin else np.zeros(jump.shape, np.uint8)
        cross = np.linalg.norm(np.cross(normals, exact), axis=-1)
        errors.append(np.degrees(np.arctan2(cross, (normals * exact).sum(-1)))[edge == 0])
    return np.concatenate(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320))
    parser.add_argument("--scenes", type=int, default=40)
    options = parser.parse_args()
    rooms = Rooms("train", options.scenes, tuple(options.size))
    mean, worst = milliseconds(rooms)
    print(f"{options.size[0]} x {options.size[1]}: {mean:.1f} ms of CPU a scene (slowest {worst:.1f})")
    for window in (3, 5, 7, 11):
        away, all_pixels = angles(rooms, window, window), angles(rooms, window, 0)
        print(
            f"normals from depth, window {window}: mean {away.mean():.3f} degrees away from edges "
            f"({100 * len(away) / len(all_pixels):.0f} % of the pixels), {all_pixels.mean():.3f} over all"
        )


if __name__ == "__main__":
    main()
