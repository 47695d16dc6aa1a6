"""Products by oneDNN are those of torch, forward and backward, and go there only where they should."""

from functools import partial

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


@pytest.mark.parametrize("lead", [(7,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("needed", [(True, True, True), (False, True, True), (True, False, False)])
def test_gradients_are_those_of_torch(lead: tuple[int, ...], needed: tuple[bool, bool, bool]) -> None:
    given_values = (drawn(*lead, 9), drawn(11, 9, seed=1), drawn(11, seed=2))
    found = []
    for function in (linear, F.linear):
        values = [
            value.clone().requires_grad_(wanted) for value, wanted in zip(given_values, needed, strict=True)
        ]
        function(*values).square().sum().backward()
        found.append([value.grad for value in values])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            close(ours, theirs)


@pytest.mark.parametrize("trained", ["weight", "rows"])
def test_it_keeps_what_torch_keeps(trained: str) -> None:
    rows, weight, bias = drawn(5, 9), drawn(11, 9), drawn(11)
    (weight if trained == "weight" else rows).requires_grad_()
    kept = []
    for function in (linear, F.linear):
        here: set[int] = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value, here=here: here.add(value.data_ptr()), id
        ):
            function(rows, weight, bias)
        kept.append(here)
    assert kept[0] == kept[1] == {(rows if trained == "weight" else weight).data_ptr()}


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
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert WHERE.__wrapped__() is faster


WHERE = products._onednn_is_faster  # before it is replaced
