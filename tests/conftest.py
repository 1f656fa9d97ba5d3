"""Settings for every test: one thread, fixed seeds, hypothesis without a clock."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("geopose", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("geopose")
torch.set_num_threads(1)
cv2.setNumThreads(1)  # a process forked beside OpenCV's own threads may hang


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    """A draw that forgot its generator still repeats; the global state is put back afterwards."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh numpy generator, the same for every test."""
    return np.random.default_rng(20240501)
