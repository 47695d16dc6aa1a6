"""Arrays in mappings of their own: ordinary arrays whose memory leaves the process with them."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from placeray.training.batch_memory import mapped_zeros


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple),
    st.sampled_from([np.uint8, np.float32, np.int64]),
)
def test_is_a_writable_array_of_zeros(shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    made = mapped_zeros(shape, dtype)
    assert (made.shape, made.dtype, made.any()) == (shape, np.dtype(dtype), False)
    made += 1
    assert made.all()
    assert not mapped_zeros(shape, dtype).any()


def test_lives_as_long_as_a_tensor_over_it() -> None:
    tensor = torch.from_numpy(mapped_zeros((3, 5), np.float32))
    tensor += 7
    gc.collect()
    assert tensor.sum() == 3 * 5 * 7


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of this process")
def test_goes_back_to_the_system_when_dropped() -> None:
    size = 64 << 20
    before = resident_bytes()
    made = mapped_zeros((size,), np.uint8)
    made[:] = 1
    assert resident_bytes() - before > 0.9 * size
    del made
    assert resident_bytes() - before < 0.1 * size


def resident_bytes() -> int:
    """Without pages of files, which come and go with what other processes do."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024
