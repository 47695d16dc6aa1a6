"""The compiled pass gives the bits of the plain one."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.model.preprocess import normalise
from placeray.training.normalised import normalised


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_bit_for_bit(batch: int, height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    fast, plain = normalised(pixels), normalise(torch.from_numpy(pixels))
    assert fast.shape == plain.shape
    assert fast.dtype == torch.float32
    assert torch.equal(fast, plain)
