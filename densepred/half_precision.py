"""Whether half precision is any faster where it is asked for."""

import torch


def computes_bfloat16(device: str) -> bool:
    """Whether a kind of device has arithmetic for bfloat16; without, processors are hundreds of times slower in it.

    Args:
        device: Such as "cpu" or "cuda"; all but processors are taken to have it, or to be quick enough without.
    """
    if device != "cpu":
        return True
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # what oneDNN goes by: AVX-512 and better, or Arm's
    return supported


def default_device() -> str:
    """The kind of device that a run takes where it is left to choose."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type
