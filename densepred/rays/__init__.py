"""Surfaces along rays: directed ray distance functions, and what turns them into a scene."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.rays.decoding import surfaces_along as surfaces_along
    from densepred.rays.field import directed_ray_distance as directed_ray_distance
    from densepred.rays.loss import log_l1 as log_l1
    from densepred.rays.metrics import RayScore as RayScore
    from densepred.rays.metrics import SceneScore as SceneScore
    from densepred.rays.module import RayDistancePredictor as RayDistancePredictor
    from densepred.rays.network import PointDecoder as PointDecoder
    from densepred.rays.network import RayDistanceNetwork as RayDistanceNetwork

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "PointDecoder": "network",
        "RayDistanceNetwork": "network",
        "RayDistancePredictor": "module",
        "RayScore": "metrics",
        "SceneScore": "metrics",
        "directed_ray_distance": "field",
        "log_l1": "loss",
        "surfaces_along": "decoding",
    },
)
