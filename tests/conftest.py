"""Settings that every test shares: no network, one thread a worker, real data where it stands."""

import os
import random
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    random.seed(0)  # the transforms' own, where a test gives them no seed


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets named by DENSEPRED_DATA; tests that need it skip, saying so, without it."""
    folder = os.environ.get("DENSEPRED_DATA", "")
    if not folder:
        pytest.skip("real data: set DENSEPRED_DATA to the folder that holds voc2012, nyuv2, camvid, weights")
    return Path(folder).resolve()
