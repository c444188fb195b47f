"""Monte Carlo dropout: a network with dropout as a sample of many."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from densepred.errors import ConfigurationError
from densepred.inference.evidence import Evidence, Mixture, NetworkEvidence


class MonteCarloDropout(Evidence):
    """The mean over networks of which dropout has left out other parts, and by `answers` how they differ.

    Only layers of dropout go into training mode, and only while a sample is drawn; normalisation keeps its statistics.

    Args:
        evidence: Of networks with dropout; an ensemble's members are sampled each.
        samples: How many.
        seed: Sample k draws its masks from seed + k, so that an image has the same answer whenever it is asked about
            (the random numbers of others stay where they were); None for other masks each time.

    Shape:
        image: (B, C, H, W); returns by task name (B, planes, H, W).

    Raises:
        ConfigurationError: If there is less than one sample, or no network has dropout: all samples would be equal.

    Reference:
        Gal, Ghahramani. Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning. ICML
        2016. arXiv:1506.02142; for labels Kendall, Badrinarayanan, Cipolla. Bayesian SegNet. BMVC 2017.
        arXiv:1511.02680.
    """

    def __init__(self, evidence: Evidence, samples: int, seed: int | None = 0) -> None:
        super().__init__(evidence.tasks)
        if samples < 1:
            raise ConfigurationError(f"Monte Carlo dropout wants at least one sample; got {samples}.")
        self.layers = [layer for network in networks_of(evidence) for layer in dropout_layers(network)]
        if not self.layers:
            raise ConfigurationError(
                "Monte Carlo dropout: the network has no dropout, so that all samples would be equal. Train one with "
                "dropout (an option of most decoders), or average several checkpoints."
            )
        self.evidence = evidence
        self.samples = samples
        self.seed = seed

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The joint evidence of all samples."""
        mixture = Mixture(self.tasks)
        for sample in range(self.samples):
            with self._sampling(sample, image.device):
                mixture.add(self.evidence(image))
        return mixture.mean()

    def answers(self, image: Tensor) -> Iterator[dict[str, Tensor]]:
        """Each sample's."""
        for sample in range(self.samples):
            # drawn within the block: whoever reads them one by one must not find the layers in training mode
            with self._sampling(sample, image.device):
                drawn = list(self.evidence.answers(image))
            yield from drawn

    @contextmanager
    def _sampling(self, sample: int, device: torch.device) -> Iterator[None]:
        before = [layer.training for layer in self.layers]
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=self.seed is not None):
            if self.seed is not None:
                torch.manual_seed(self.seed + sample)
            try:
                for layer in self.layers:
                    layer.train()
                yield
            finally:
                for layer, mode in zip(self.layers, before, strict=True):
                    layer.train(mode)


def dropout_layers(network: nn.Module) -> list[nn.Module]:
    """The network's layers of dropout, of values and of whole maps, that leave anything out."""
    return [layer for layer in network.modules() if isinstance(layer, _DropoutNd) and layer.p > 0]


def networks_of(evidence: Evidence) -> list[nn.Module]:
    """The networks that are asked, however deep in evidence made of evidence."""
    if isinstance(evidence, NetworkEvidence):
        return [evidence.network]
    return [network for part in evidence.parts() for network in networks_of(part)]
