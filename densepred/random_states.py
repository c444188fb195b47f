"""The random numbers' states of every process, as plain tensors and numbers that a checkpoint may hold."""

import random
from typing import Any

import numpy as np
import torch
from torch import distributed

State = dict[str, Any]


def random_state(device: torch.device) -> State:
    """Where the generators of torch, of the device, of NumPy and of Python stand in this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, python, next_gauss = random.getstate()
    state: State = {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(python), next_gauss],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: State, device: torch.device) -> None:
    """Puts the generators where they stood.

    Example:
        >>> before = random_state(torch.device("cpu"))
        >>> drawn = random.random(), np.random.rand(), torch.rand(1)
        >>> set_random_state(before, torch.device("cpu"))
        >>> drawn == (random.random(), np.random.rand(), torch.rand(1))
        True
    """
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, python, next_gauss = state["python"]
    random.setstate((version, tuple(python.tolist()), next_gauss))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def all_random_states(device: torch.device) -> list[State]:
    """The states of all processes, by rank. All must call it."""
    mine = random_state(device)
    if not (distributed.is_available() and distributed.is_initialized()):
        return [mine]
    states: list[State] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(states, mine)
    return states
