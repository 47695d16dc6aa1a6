"""Products by oneDNN are those of torch, and go there only where they should."""

from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placeray.model import products
from placeray.model.products import exact_product, linear, product

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this torch has no oneDNN",
)
close = partial(torch.testing.assert_close, rtol=1e-5, atol=5e-5)


@pytest.fixture(autouse=True, scope="module")
def _by_onednn() -> object:
    """As on a processor where it is faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_onednn_is_faster", lambda: True)
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(
    lead=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    widths=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    with_bias=st.booleans(),
    gelu=st.booleans(),
    strided=st.booleans(),
)
def test_a_product_is_that_of_torch(
    lead: list[int], widths: tuple[int, int], with_bias: bool, gelu: bool, strided: bool
) -> None:
    rows, weight = drawn(*lead, widths[0]), drawn(widths[1], widths[0], seed=1)
    if strided:
        weight = weight.t().contiguous().t()
        rows = drawn(*lead, 2 * widths[0])[..., ::2]
    bias = drawn(widths[1], seed=2) if with_bias else None
    expected = F.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    close(product(rows, weight, bias, gelu=gelu), (F.gelu(expected) if gelu else expected).float())
    total = drawn(*lead, 2 * widths[1], seed=3)[..., widths[1] :]
    before = total.clone()
    for added in (product, exact_product):
        close(added(rows, weight, bias, total), (total + expected).float())
        assert torch.equal(total, before)


@settings(max_examples=30, deadline=None)
@given(
    lead=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    widths=st.tuples(st.integers(1, 500), st.integers(1, 70)),
    needed=st.sets(st.sampled_from([0, 1, 2]), min_size=1),
    strided=st.booleans(),
)
def test_gradients_are_those_of_torch(
    lead: list[int], widths: tuple[int, int], needed: set[int], strided: bool
) -> None:
    values = [drawn(*lead, widths[0]), drawn(widths[1], widths[0], seed=1), drawn(widths[1], seed=2)]
    if strided:
        values[0] = drawn(*lead, 2 * widths[0])[..., ::2]
    ours, exact = [value.clone() for value in values], [value.double() for value in values]
    for index in needed:
        ours[index].requires_grad_()
        exact[index].requires_grad_()
    found, expected = linear(*ours), F.linear(*exact)
    close(found, expected.float())
    F.relu(found, inplace=True).square().sum().backward()
    F.relu(expected).square().sum().backward()
    for index in needed:
        expected_gradient = exact[index].grad
        assert expected_gradient is not None
        scale = expected_gradient.abs().max().item() or 1.0
        torch.testing.assert_close(ours[index].grad, expected_gradient.float(), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("width", [240, 384, 768])
def test_what_learns_is_as_exact_as_by_torch(width: int) -> None:
    """torch's sums of 768 are right to 2.5e-7, oneDNN's in one piece to 3.7e-7."""
    rows, weight, bias = drawn(512, width), drawn(128, width, seed=1), drawn(128, seed=2)
    expected = F.linear(rows.double(), weight.double(), bias.double())
    error = (exact_product(rows, weight, bias) - expected).square().mean().sqrt()
    assert error < 2.8e-7 * expected.square().mean().sqrt()


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.sampled_from([4, 20, 64])),
    size=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_attention_with_written_scores_is_as_exact_as_that_of_torch(
    shape: tuple[int, int, int, int], size: float
) -> None:
    given_values = [size * drawn(*shape, seed=0), drawn(*shape, seed=1), drawn(*shape, seed=2)]
    values = [value.bfloat16() for value in given_values]
    with mock.patch.object(products, "_multiplies_bf16", return_value=True):
        assert products.writes_scores(values[0].device, torch.bfloat16)
        found = products.attention(*values)
    assert found.dtype is torch.bfloat16
    expected = F.scaled_dot_product_attention(*(value.float() for value in values))
    assert (found.float() - expected).norm() < 0.04 * expected.norm()


def test_other_formats_and_a_compiler_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products._goes_to_onednn(drawn(2, 3))
    assert not products._goes_to_onednn(drawn(2, 3).double())
    assert not products._goes_to_onednn(drawn(2, 3).bfloat16())
    assert not products._goes_to_onednn(drawn(0, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not products._goes_to_onednn(drawn(2, 3))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not products._goes_to_onednn(drawn(2, 3))


@pytest.mark.parametrize(
    ("capabilities", "faster"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx512_f": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_which_processors(
    capabilities: dict[str, object], faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert WHERE.__wrapped__() is faster


WHERE = products._onednn_is_faster  # before it is replaced
