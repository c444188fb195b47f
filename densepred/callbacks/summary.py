"""What a run trains, in a few lines."""

import pytorch_lightning as pl
from torch import nn

from densepred.network import DenseNetwork


class NetworkSummary(pl.Callback):
    """Prints the parts of the network and their numbers of parameters when a fit starts."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the table."""
        network = getattr(pl_module, "network", None)
        if trainer.is_global_zero and isinstance(network, DenseNetwork):
            print(network_table(network), flush=True)


def network_table(network: DenseNetwork) -> str:
    """A line for the encoder and for each decoder: class, parameters, and how many of them are trained.

    Example:
        >>> from densepred.decoders.pointwise import PointwiseDecoder
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> print(network_table(DenseNetwork(ResNetEncoder("resnet18"), PointwiseDecoder, {"depth": 1})))
        network                                         parameters       trained
          encoder: ResNetEncoder                        11,176,512    11,176,512
          decoder depth: PointwiseDecoder                       65            65
          all                                           11,176,577    11,176,577
    """
    parts: list[tuple[str, nn.Module]] = [("encoder", network.encoder)]
    parts += [(f"decoder {name}", decoder) for name, decoder in network.decoders.items()]
    if network.auxiliary_decoders is not None:
        for decoders in network.auxiliary_decoders:
            parts += [(f"auxiliary {name}", decoder) for name, decoder in decoders.named_children()]
    if network.refine is not None:
        parts.append(("refine", network.refine))
    rows = [(f"{what}: {type(part).__name__}", part) for what, part in parts]
    lines = [f"{'network':<44}{'parameters':>14}{'trained':>14}"]
    for what, part in [*rows, ("all", network)]:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
        total, trained = sum(size for size, _ in sizes), sum(size for size, wanted in sizes if wanted)
        lines.append(f"  {what:<42}{total:>14,}{trained:>14,}")
    return "\n".join(lines)
