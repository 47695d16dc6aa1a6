"""The MultiConv adapter against a slow twin, and the two starts of its convolutions."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placeray.model.adapter import ConvUnit, MultiConvAdapter
from placeray.model.backbone import BackboneConfig
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model

WIDTH = 64


def adapter(seed: int = 0) -> MultiConvAdapter:
    torch.manual_seed(seed)
    made = MultiConvAdapter(WIDTH)
    for unit in made.modules():
        if isinstance(unit, ConvUnit):
            torch.nn.init.uniform_(unit.bn.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(unit.bn.running_var, 0.1, 0.4)
            torch.nn.init.normal_(unit.bn.bias)
    return made.eval()


def slow_unit(unit: ConvUnit, image: Tensor) -> Tensor:
    """Convolution as a sum over shifted copies, batch norm by its formula, ReLU; image (C, rows, columns)."""
    weight, bias = unit.conv.weight, unit.conv.bias
    kernel = weight.shape[-1]
    padded = F.pad(image, [kernel // 2] * 4)
    rows, columns = image.shape[1:]
    total = torch.zeros(len(weight), rows, columns)
    for i in range(kernel):
        for j in range(kernel):
            total += torch.einsum("oc,crw->orw", weight[:, :, i, j], padded[:, i : i + rows, j : j + columns])
    total += bias[:, None, None]
    norm = unit.bn
    scaled = (total - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 0.001) ** 0.5
    return (norm.weight[:, None, None] * scaled + norm.bias[:, None, None]).clamp(min=0)


@torch.no_grad()
def slow_adapter(made: MultiConvAdapter, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """One photo after the other, cls token and patches apart; as section "MultiConv adapter" of the paper's code."""
    outputs = []
    for photo in tokens:
        hidden = (photo @ made.down.weight.T + made.down.bias).clamp(min=0)
        cls, patches = hidden[: -(grid[0] * grid[1])], hidden[-(grid[0] * grid[1]) :]
        image = patches.T.reshape(-1, *grid)
        three = slow_unit(made.branch2[1], slow_unit(made.branch2[0], image))
        five = slow_unit(made.branch3[1], slow_unit(made.branch3[0], image))
        scales = torch.cat([slow_unit(made.branch1, image), three, five])
        mixed = torch.cat([cls + cls, scales.flatten(1).T + patches])
        outputs.append(mixed @ made.up.weight.T + made.up.bias)
    return torch.stack(outputs)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 6)])
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_equals_its_slow_twin(
    grid: tuple[int, int], num_prefix: int, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("placeray.model.products._onednn_is_faster", lambda: onednn)
    made = adapter()
    tokens = torch.randn(2, num_prefix + grid[0] * grid[1], WIDTH)
    before = tokens.clone()
    expected = slow_adapter(made, tokens, grid)
    torch.testing.assert_close(made(tokens, grid), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(made(tokens, grid), expected, rtol=1e-5, atol=1e-6)
        added = made(tokens, grid, tokens)
    torch.testing.assert_close(made(tokens, grid, tokens), tokens + expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(added, tokens + expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(tokens, before)  # what is done in place stays inside


def test_several_threads_may_describe_with_one_adapter() -> None:
    made = adapter().eval()
    tokens = torch.randn(2, 16, WIDTH)

    @torch.no_grad()
    def run(_: int) -> Tensor:
        return made(tokens, (4, 4))

    expected, kept = run(0), dict(made.named_parameters())
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, range(200)):
            torch.testing.assert_close(found, expected)
    assert all(kept[name] is value for name, value in made.named_parameters())


def plain_forward(made: MultiConvAdapter, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The published forward by torch's own modules and their own backward."""
    hidden = F.relu(made.down(tokens))
    num_prefix = hidden.shape[1] - grid[0] * grid[1]
    image = hidden[:, num_prefix:].transpose(1, 2).unflatten(2, grid)
    scales = torch.cat([made.branch1(image), made.branch2(image), made.branch3(image)], dim=1)
    mixed = torch.cat([hidden[:, :num_prefix], scales.flatten(2).transpose(1, 2)], dim=1)
    return made.up(mixed + hidden)


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_equal_those_of_the_published_forward(num_prefix: int, dtype: torch.dtype) -> None:
    found = []
    forwards = (
        lambda *given: given[1] + MultiConvAdapter.forward(*given),
        lambda *given: MultiConvAdapter.forward(*given, given[1]),
        lambda *given: given[1] + plain_forward(*given),
    )
    for forward in forwards:
        made = adapter().to(dtype).train()
        tokens = torch.randn(3, num_prefix + 15, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
        tokens.requires_grad_()
        result = forward(made, tokens, (3, 5))
        (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
        gradients = [tokens.grad, *(value.grad for value in made.parameters())]
        found.append([result, *gradients, *made.buffers()])  # these are the statistics of batch norm
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for added, ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(added, theirs, **tolerance)
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_gradients_under_autocast_are_near_those_of_float32() -> None:
    found = []
    for precision in (torch.float32, torch.bfloat16):
        made = adapter().train()
        tokens = torch.randn(3, 16, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            result = made(tokens, (3, 5))
            assert made(tokens, (3, 5), tokens).dtype == torch.float32  # the running sum stays as it is
        assert result.dtype == precision
        result.float().square().sum().backward()
        found.append(
            [
                tokens.grad,
                *(made.get_parameter(name).grad for name in ("down.weight", "up.weight", "up.bias")),
            ]
        )
    for exact, rough in zip(*found, strict=True):
        assert rough.dtype == torch.float32
        assert F.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(("width", "parameters"), [(768, 762_768), (1024, 1_354_944)])
def test_the_published_sizes(width: int, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(value.numel() for value in MultiConvAdapter(width).parameters()) == parameters


def test_cls_and_patches_never_meet() -> None:
    made = adapter()
    tokens = torch.randn(1, 17, WIDTH)
    changed = tokens.clone()
    changed[:, 0] += 1
    before, after = made(tokens, (4, 4)), made(changed, (4, 4))
    assert not torch.equal(before[:, 0], after[:, 0])
    torch.testing.assert_close(before[:, 1:], after[:, 1:], rtol=0, atol=0)


def test_a_wide_grid_equals_a_square_crop_two_patches_from_the_cut() -> None:
    """The largest kernel is 5 x 5: two patches from the cut, an adapter cannot know of it."""
    made = adapter()
    wide = torch.randn(1, 6, 10, WIDTH)
    whole = made(wide.flatten(1, 2), (6, 10)).unflatten(1, (6, 10))
    crop = made(wide[:, :, :6].flatten(1, 2), (6, 6)).unflatten(1, (6, 6))
    torch.testing.assert_close(crop[:, :, :4], whole[:, :, :4])
    assert not torch.allclose(crop[:, :, 4:], whole[:, :, 4:6])


@pytest.mark.parametrize("start", ["reference", "small", "random"])
def test_at_the_start_it_adds_nothing(start: str) -> None:
    made = MultiConvAdapter(WIDTH)
    made.initialise(start)  # type: ignore[arg-type]
    assert not made(torch.randn(2, 16, WIDTH), (4, 4)).any()


def test_the_reference_start_is_a_constant() -> None:
    made = MultiConvAdapter(WIDTH)
    made.initialise("reference")
    convolutions = [unit.conv for unit in made.modules() if isinstance(unit, ConvUnit)]
    assert len(convolutions) == 5
    for conv in convolutions:
        assert conv.weight.unique().tolist() == pytest.approx([1e-5])
        assert conv.bias is not None
        assert conv.bias.unique().tolist() == pytest.approx([1e-5])


def rank_of_reduce_layers(start: str) -> list[int]:
    """Number of different channels in each 1x1 reduce layer after some steps of training."""
    config = ModelConfig(
        backbone=BackboneConfig(name="toy", embed_dim=WIDTH * 2, depth=2, num_heads=2, position_px=56),
        conv_start=start,  # type: ignore[arg-type]
    )
    model = build_model(config).train()
    train_a_little(model)
    assert model.float_branch is not None
    layers = [
        branch[0].conv.weight
        for made in model.float_branch.adapters
        for branch in (made.branch2, made.branch3)
    ]
    return [int(torch.linalg.matrix_rank(weight.flatten(1), rtol=1e-4)) for weight in layers]


def train_a_little(model: SelaVPR) -> None:
    images = torch.randn(6, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(5):
        found = model(images).float
        optimizer.zero_grad()
        (found @ found.T).tril(-1).square().sum().backward()
        optimizer.step()


def test_reduce_channels_stay_one_channel_from_the_reference_start() -> None:
    assert rank_of_reduce_layers("reference") == [1, 1, 1, 1]


@pytest.mark.parametrize("start", ["small", "random"])
def test_reduce_channels_come_apart_from_a_random_start(start: str) -> None:
    assert min(rank_of_reduce_layers(start)) == 4
