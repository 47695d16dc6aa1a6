"""A frozen block gives what timm's own forward gives, and leaves the blocks that it does not know to timm."""

from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import GluMlp, LayerNorm
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from placeray.model.frozen_block import frozen_runner

PLAIN = {"num_heads": 2, "qkv_bias": True, "init_values": 0.5}

# Products of other shapes or at other addresses may be summed in another order, differently on every processor. float64
# tells an error from such roundings: another activation, scale or head is wrong by far more in either type.
CLOSE = {
    torch.float64: partial(torch.testing.assert_close, rtol=1e-11, atol=1e-11),
    torch.float32: partial(torch.testing.assert_close, rtol=1e-5, atol=5e-5),
}


def frozen(block: nn.Module) -> nn.Module:
    """In eval mode, with a value of its own for every weight."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in block.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return block.eval().requires_grad_(False)


def runs_timms_forward(block: nn.Module, tokens: Tensor) -> bool:
    """Whether the block itself is called."""
    calls: list[object] = []
    block.register_forward_hook(lambda *_: calls.append(None))
    frozen_runner([block], tokens)(block, tokens)
    return bool(calls)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40)),
    heads=st.integers(1, 3),
    head_width=st.sampled_from([8, 20, 64]),
    mlp_ratio=st.sampled_from([0.5, 2.0, 4.0]),
    init_values=st.sampled_from([None, 1e-5]),
    dtype=st.sampled_from(list(CLOSE)),
    onednn=st.booleans(),
)
def test_it_gives_what_timm_gives(
    shape: tuple[int, int],
    heads: int,
    head_width: int,
    mlp_ratio: float,
    init_values: float | None,
    dtype: torch.dtype,
    onednn: bool,
) -> None:
    width = heads * head_width
    blocks = [
        frozen(Block(width, heads, ratio, qkv_bias=True, init_values=init_values)).to(dtype)
        for ratio in (mlp_ratio, 1)
    ]
    tokens = torch.randn(*shape, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    given_tokens = tokens.clone()
    with mock.patch("placeray.model.products._onednn_is_faster", return_value=onednn):
        run = frozen_runner(blocks, tokens)
        first = run(blocks[0], tokens)
        second = run(blocks[1], first)
    CLOSE[dtype](first, blocks[0](tokens))
    CLOSE[dtype](second, blocks[1](first))
    assert torch.equal(tokens, given_tokens)


@pytest.mark.parametrize("dtype", CLOSE)
def test_a_photo_is_described_the_same_alone_and_among_others(dtype: torch.dtype) -> None:
    block = frozen(Block(64, **PLAIN)).to(dtype)
    tokens = torch.randn(8, 17, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    together = frozen_runner([block], tokens)(block, tokens)
    alone = torch.cat([frozen_runner([block], photo)(block, photo) for photo in tokens.split(1)])
    CLOSE[dtype](alone, together)


def test_no_product_is_wider_than_memory_that_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    block, tokens = frozen(Block(64, **PLAIN)), torch.randn(7, 17, 64)
    photo = 17 * 4 * 64 * 4
    monkeypatch.setattr("placeray.model.frozen_block.WIDEST_BYTES", 3 * photo)
    weights = {value.untyped_storage().data_ptr() for value in block.parameters()}
    sizes: set[int] = set()

    class NoteSizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    sizes.add(storage.nbytes())
            return result

    with NoteSizes():
        found = frozen_runner([block], tokens)(block, tokens)
    assert max(sizes) == 3 * photo
    CLOSE[torch.float32](found, block(tokens))


class Adapted(nn.Linear):
    """A layer that somebody has put in place of a block's own."""


def replaced(name: str, layer: nn.Module) -> nn.Module:
    block = Block(64, **PLAIN)
    block.set_submodule(name, layer)
    return frozen(block)


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "another kind of block": lambda: frozen(ResPostBlock(64, **PLAIN)),
    "SwiGLU": lambda: frozen(Block(64, **PLAIN, mlp_layer=GluMlp)),
    "normalised queries": lambda: frozen(Block(64, **PLAIN, qk_norm=True)),
    "a norm after attention": lambda: frozen(Block(64, **PLAIN, scale_attn_norm=True)),
    "a norm inside the MLP": lambda: frozen(Block(64, **PLAIN, scale_mlp_norm=True)),
    "no bias": lambda: frozen(Block(64, num_heads=2)),
    "another activation": lambda: frozen(Block(64, **PLAIN, act_layer=nn.SiLU)),
    "approximate GELU": lambda: frozen(Block(64, **PLAIN, act_layer=partial(nn.GELU, approximate="tanh"))),
    "an adapted layer": lambda: replaced("attn.qkv", Adapted(64, 192)),
    "an adapted narrow layer": lambda: replaced("attn.proj", Adapted(64, 64)),
    "another scale": lambda: replaced("ls1", LayerNorm(64)),
    "dropout at work": lambda: frozen(Block(64, **PLAIN, drop_path=0.5)).train(),
    "weights to be trained": lambda: frozen(Block(64, **PLAIN)).requires_grad_(True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_block_runs_as_timm_wrote_it(name: str) -> None:
    assert runs_timms_forward(OTHERS[name](), torch.randn(2, 5, 64))


def test_a_plain_block_does_not() -> None:
    block, tokens = frozen(Block(64, **PLAIN)), torch.randn(2, 5, 64)
    assert not runs_timms_forward(block, tokens)
    assert runs_timms_forward(block, tokens.requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not runs_timms_forward(block, tokens.detach())
        assert runs_timms_forward(block, tokens.detach().bfloat16())  # its result would be float32


@pytest.mark.parametrize("scores_written", [False, True])
@pytest.mark.parametrize("init_values", [None, 0.5])
def test_under_autocast_it_gives_what_timm_gives_there(
    init_values: float | None, scores_written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("placeray.model.products._onednn_is_faster", lambda: scores_written)
    monkeypatch.setattr("placeray.model.products._multiplies_bf16", lambda: scores_written)
    block = frozen(Block(64, num_heads=2, qkv_bias=True, init_values=init_values))
    tokens = torch.randn(3, 17, 64, generator=torch.Generator().manual_seed(0))
    exact = block(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = frozen_runner([block], tokens)(block, tokens), block(tokens)
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - exact).norm() < 1.3 * (theirs - exact).norm()


def test_cast_weights_follow_those_they_were_cast_from() -> None:
    block = frozen(Block(64, **PLAIN))
    tokens = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return frozen_runner([block], tokens)(block, tokens)

    def twin() -> Tensor:
        """The same block without anything kept."""
        fresh = Block(64, **PLAIN).eval().requires_grad_(False)
        fresh.load_state_dict(block.state_dict())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return frozen_runner([fresh], tokens)(fresh, tokens)

    changes = (
        lambda: None,
        lambda: block.mlp.fc1.weight.mul_(2),
        lambda: block.attn.proj.bias.add_(1),
        lambda: block.load_state_dict(frozen(Block(64, **PLAIN)).state_dict()),
        lambda: block.load_state_dict(Block(64, **PLAIN).state_dict(), assign=True),
        lambda: setattr(block.mlp.fc2, "weight", nn.Parameter(torch.randn(64, 256), requires_grad=False)),
        lambda: setattr(block.mlp.fc2, "bias", nn.Parameter(torch.randn(64), requires_grad=False)),
        lambda: block.to(torch.float64).to(torch.float32),
    )
    for change in changes:
        change()
        assert torch.equal(run(), twin())
        assert torch.equal(run(), twin())


def test_weights_that_do_not_tell_their_changes_are_cast_each_time() -> None:
    tokens = torch.randn(2, 5, 64)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        block = frozen(Block(64, **PLAIN))
        run = frozen_runner([block], tokens)
        before = run(block, tokens)
        block.mlp.fc2.weight.mul_(2)
        assert not torch.equal(run(block, tokens), before)


def test_explicit_attention_is_left_to_timm() -> None:
    block = frozen(Block(64, **PLAIN))
    block.attn.fused_attn = False
    assert runs_timms_forward(block, torch.randn(2, 5, 64))


def test_weights_that_require_gradients_do_not_matter_without_a_graph() -> None:
    block = frozen(Block(64, **PLAIN)).requires_grad_(True)
    with torch.inference_mode():
        assert not runs_timms_forward(block, torch.randn(2, 5, 64))
