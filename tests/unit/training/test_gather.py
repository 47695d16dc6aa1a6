"""Several processes must compute what one process computes: gather, BatchNorm and a whole step."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from placeray.model.adapter import MultiConvAdapter
from placeray.training.gather import gather_rows, rows_of_ranks
from placeray.training.global_batchnorm import GlobalBatchNorm2d, use_global_batchnorm

WORLD = 2
SHARES = [5, 3]  # ranks may hold different numbers of rows


class _Network(nn.Module):
    """A batch norm that is called, and those of an adapter, which are joined."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        self.adapter, self.reduce = MultiConvAdapter(32), nn.Linear(32, 6)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        image = F.relu(self.norm(self.conv(images)))
        return self.reduce(self.adapter(image.flatten(2).transpose(1, 2), image.shape[2:]).mean(dim=1))


def _inputs() -> Tensor:
    return torch.randn(sum(SHARES), 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _all_pairs_loss(rows: Tensor) -> Tensor:
    """Every row meets every other: wrong as soon as a rank sees only its own rows."""
    return (rows @ rows.T).sin().sum()


def _rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    model = use_global_batchnorm(_Network())
    own = _inputs().split(SHARES)[rank]
    counts = rows_of_ranks(len(own), own.device)
    rows = gather_rows(model(own), counts)
    loss = _all_pairs_loss(rows)
    loss.backward()
    for parameter in model.parameters():  # what DistributedDataParallel does
        dist.all_reduce(parameter.grad)
        parameter.grad /= WORLD
    result = {
        "counts": counts,
        "loss": loss.detach(),
        "grads": [p.grad for p in model.parameters()],
        "buffers": {k: v for k, v in model.state_dict().items() if "running" in k},
    }
    torch.save(result, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank_main, args=(str(folder),), nprocs=WORLD)
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> nn.Module:
    """The slow, obvious twin: one process, torch's own BatchNorm, the whole batch."""
    model = _Network()
    model.loss = _all_pairs_loss(model(_inputs()))
    model.loss.backward()
    return model


def test_every_rank_knows_all_shares_and_the_same_loss(ranks: list[dict[str, Any]], alone: nn.Module) -> None:
    for result in ranks:
        assert result["counts"] == SHARES
        torch.testing.assert_close(result["loss"], alone.loss.detach(), rtol=1e-12, atol=0)


def test_gradients_equal_those_of_one_process(ranks: list[dict[str, Any]], alone: nn.Module) -> None:
    for result in ranks:
        for got, parameter in zip(result["grads"], alone.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-12)


def test_running_statistics_equal_those_of_one_process(ranks: list[dict[str, Any]], alone: nn.Module) -> None:
    expected = alone.state_dict()
    for result in ranks:
        for name, got in result["buffers"].items():
            torch.testing.assert_close(got, expected[name], rtol=1e-12, atol=1e-12)


def test_global_batchnorm_keeps_parameters_and_keys() -> None:
    model = _Network()
    before = copy.deepcopy(model.state_dict())
    weight = model.norm.weight
    use_global_batchnorm(model)
    assert isinstance(model.norm, GlobalBatchNorm2d)
    assert model.norm.weight is weight, "a new parameter would not be in the optimizer"
    assert model.state_dict().keys() == before.keys()


def test_one_process_gathers_itself() -> None:
    rows = torch.ones(2, 3)
    assert gather_rows(rows, [2]) is rows
