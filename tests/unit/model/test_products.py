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
from placeray.model.products import linear, product

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


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_what_learns_is_left_to_torch(needed: int) -> None:
    values = [drawn(7, 9), drawn(11, 9, seed=1), drawn(11, seed=2)]
    values[needed].requires_grad_()
    with mock.patch.object(products, "product") as own:
        linear(*values).sum().backward()
        assert not own.called
        with torch.no_grad():
            linear(*values)
        assert own.called
    assert values[needed].grad is not None


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
