"""From a checkpoint to answers: labels, metres and unit normals of anyone's pictures. Needs no Lightning."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.inference.anytime import AnytimeEvidence as AnytimeEvidence
    from densepred.inference.anytime import Budget as Budget
    from densepred.inference.augmented import TestTimeAugmentation as TestTimeAugmentation
    from densepred.inference.checkpoint import load_network as load_network
    from densepred.inference.dropout import MonteCarloDropout as MonteCarloDropout
    from densepred.inference.evidence import Evidence as Evidence
    from densepred.inference.evidence import MeanEvidence as MeanEvidence
    from densepred.inference.evidence import NetworkEvidence as NetworkEvidence
    from densepred.inference.export import export_program as export_program
    from densepred.inference.onnx_file import export_onnx as export_onnx
    from densepred.inference.options import InferenceOptions as InferenceOptions
    from densepred.inference.photos import Photo as Photo
    from densepred.inference.photos import read_photo as read_photo
    from densepred.inference.prediction import Prediction as Prediction
    from densepred.inference.predictor import Predictor as Predictor
    from densepred.inference.refined import CRFRefined as CRFRefined
    from densepred.inference.rescaled import Rescaled as Rescaled
    from densepred.inference.safetensors_file import export_safetensors as export_safetensors
    from densepred.inference.tiling import Tiled as Tiled
    from densepred.inference.uncertainty import Uncertainty as Uncertainty
    from densepred.inference.windows import predict_large as predict_large

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "AnytimeEvidence": "anytime",
        "Budget": "anytime",
        "CRFRefined": "refined",
        "Evidence": "evidence",
        "InferenceOptions": "options",
        "MeanEvidence": "evidence",
        "MonteCarloDropout": "dropout",
        "NetworkEvidence": "evidence",
        "Photo": "photos",
        "Prediction": "prediction",
        "Predictor": "predictor",
        "Rescaled": "rescaled",
        "TestTimeAugmentation": "augmented",
        "Tiled": "tiling",
        "Uncertainty": "uncertainty",
        "export_onnx": "onnx_file",
        "export_program": "export",
        "export_safetensors": "safetensors_file",
        "load_network": "checkpoint",
        "predict_large": "windows",
        "read_photo": "photos",
    },
)
