"""The straight-through sign and the packing of bits."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from placeray.model.sign import pack_bits, straight_through_sign

logits = arrays(np.float32, (3, 16), elements=st.floats(-1, 1, width=32))


@given(logits)
def test_every_component_is_its_sign_and_zero_counts_as_positive(values: np.ndarray) -> None:
    code = straight_through_sign(torch.from_numpy(values)).numpy()
    assert code.dtype == np.float32
    np.testing.assert_array_equal(code, [[1.0 if value >= 0 else -1.0 for value in row] for row in values])


@given(logits)
def test_bits_unpack_to_the_signs(values: np.ndarray) -> None:
    packed = pack_bits(straight_through_sign(torch.from_numpy(values)))
    assert packed.shape == (3, 2)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1), (values >= 0).astype(np.uint8))


def test_the_edges() -> None:
    values = torch.tensor([0.0, -0.0, float("nan"), -1e-30], dtype=torch.bfloat16)
    code = straight_through_sign(values)
    assert code.tolist() == [1.0, 1.0, 0.0, -1.0]
    assert code.dtype == torch.float32


def test_component_0_is_the_highest_bit_of_byte_0() -> None:
    code = -torch.ones(1, 16)
    code[0, 0] = 1
    assert pack_bits(code).tolist() == [[128, 0]]


def test_the_gradient_passes_unchanged() -> None:
    values = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    (straight_through_sign(values) * torch.tensor([1.0, 2.0, -5.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, -5.0]
