"""The renderer of `Rooms`: draws a scene from random numbers and renders it, with exact labels, depth and normals."""
