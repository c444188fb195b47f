"""Points as a .ply file, whose content is a header and rows of numbers."""

import numpy as np


def points_ply(points: np.ndarray, colours: np.ndarray, normals: np.ndarray | None = None) -> bytes:
    """The content of a .ply file of coloured points (binary, little-endian).

    Args:
        points: In the camera's frame, metres.
        colours: RGB.
        normals: Unit vectors in the same frame.

    Shape:
        points, normals: (N, 3). colours: (N, 3), uint8.

    Reference:
        Turk. The PLY Polygon File Format. 1994.

    Example:
        >>> points_ply(np.zeros((2, 3)), np.zeros((2, 3), np.uint8)).split(b"\\n")[3]
        b'element vertex 2'
    """
    fields = [(axis, "<f4") for axis in "xyz"]
    fields += [(f"n{axis}", "<f4") for axis in "xyz"] if normals is not None else []
    fields += [(colour, "u1") for colour in ("red", "green", "blue")]
    vertices = np.empty(len(points), dtype=fields)
    for index, axis in enumerate("xyz"):
        vertices[axis] = points[:, index]
        if normals is not None:
            vertices[f"n{axis}"] = normals[:, index]
    for index, colour in enumerate(("red", "green", "blue")):
        vertices[colour] = colours[:, index]
    words = {"<f4": "float", "u1": "uchar"}
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres in the camera's frame: x right, y down, z forward",
        f"element vertex {len(vertices)}",
        *(f"property {words[kind]} {name}" for name, kind in fields),
        "end_header\n",
    ]
    return "\n".join(header).encode("ascii") + vertices.tobytes()
