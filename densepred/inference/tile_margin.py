"""How far from a tile's end a network says what it would say of the whole image."""

import math

import torch

from densepred.anatomy.receptive_field import theoretical_receptive_fields
from densepred.errors import ConfigurationError
from densepred.inference.evidence import Evidence, MeanEvidence, NetworkEvidence
from densepred.network import DenseNetwork


def coarsest_cell(network: DenseNetwork) -> int:
    """Pixels by which a tile must be moved for the network's cells to lie as before."""
    return math.lcm(network.encoder.multiple, *network.encoder.spec.strides)


def exact_margin(evidence: Evidence) -> int:
    """Pixels from a tile's end beyond which the answers are those about the whole image.

    Half the receptive field of the planes, and what the upsampling and the place of cells add: a coarsest cell each.

    Args:
        evidence: Of one network, or the mean of several.

    Raises:
        ConfigurationError: If there is none.
    """
    if isinstance(evidence, MeanEvidence):
        return max(exact_margin(member) for member in evidence.members)
    if not isinstance(evidence, NetworkEvidence):
        raise ConfigurationError(
            f"Tiles that tell exactly what the whole image would are known of networks as they are, and of their "
            f"means; not of {type(evidence).__name__}. Blend tiles instead (Tiled without a margin)."
        )
    # found by gradients, which whoever predicts has switched off
    with torch.inference_mode(False), torch.enable_grad():
        sides = theoretical_receptive_fields(evidence.network)
    if None in sides or evidence.network.refine is not None:
        raise ConfigurationError(
            "The network looks at the whole image (it pools or attends over all of it), so that no tile can tell what "
            "the image would. Blend tiles instead (Tiled without a margin)."
        )
    cell = coarsest_cell(evidence.network)
    return -(-max(side or 0 for side in sides) // 2) + 2 * cell
