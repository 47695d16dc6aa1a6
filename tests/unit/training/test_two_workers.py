"""Two processes that train together give the losses and weights of one on the same global batches (fp32, one seed)."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from placeray.errors import TrainingError
from placeray.model.backbone import BackboneConfig
from placeray.model.gem import GemConfig
from placeray.model.recipes import prepare
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model
from placeray.training.config import OptimizerConfig, TrainConfig
from placeray.training.distributed import across_ranks
from placeray.training.loop import Silent, StepReport
from placeray.training.optimizer import build_optimizer, build_schedule
from placeray.training.run import RunSpec, loss_of, train_once
from placeray.training.state import Snapshot, Weights, copied
from placeray.training.step import TrainStep

STEPS = 20
TOLERANCE = 1e-5


class Recorder(Silent):
    """Keeps the loss of every step and the last weights."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.weights: Weights = {}

    def steps(self, report: StepReport) -> None:
        self.losses.append(report.last.loss)

    def snapshot(self, snapshot: Snapshot) -> None:
        self.weights = copied(snapshot.weights)


def spec(folder: str, recipe: str, name: str) -> RunSpec:
    """20 steps at the published rate: 4 batches of 13 and 12 places an epoch, shared unevenly by two workers."""
    hashes = recipe != "float"
    train = {
        "recipe": recipe, "epochs": 5, "places_per_batch": 7, "seed": 1, "log_every_s": 0,
        "preprocess": {"size_px": 56},
    }  # fmt: skip
    return RunSpec(
        normalized=f"{folder}/normalized",
        output=f"{folder}/{name}",
        start_from=f"{folder}/float-alone" if recipe == "hash" else None,
        model=_model("random", hash_bits=16 if hashes else None),
        train=TrainConfig.model_validate(train),
    )


def _model(conv_start: Any, hash_bits: int | None = None) -> ModelConfig:
    backbone = BackboneConfig(name="toy", embed_dim=64, num_heads=1, depth=2)
    return ModelConfig(
        backbone=backbone, float_head=GemConfig(dim=16), hash_bits=hash_bits, conv_start=conv_start
    )


def trained(folder: str, recipe: str, name: str) -> dict[str, Any]:
    recorder = Recorder()
    train_once(spec(folder, recipe, name), recorder)
    return {"losses": recorder.losses, "weights": recorder.weights}


def parted_step(images: Tensor, labels: Tensor, **changes: Any) -> tuple[float, SelaVPR]:
    """One step in parts of three photos, of which each worker has another number."""
    model = build_model(_model("random"))
    prepare(model, "float")
    model.train()
    config = TrainConfig()
    optimizer = build_optimizer(model, OptimizerConfig(kind="sgd", lr=0.1))
    schedule = build_schedule(optimizer, config.optimizer, steps_per_epoch=4, epochs=1)
    step = TrainStep(across_ranks(model), loss_of(config), optimizer, schedule, micro_batch=3, **changes)
    return step(images, labels).loss, model


def _photos() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(12, 3, 28, 28, generator=generator), torch.arange(12) // 3


def _rank_main(rank: int, folder: str, recipe: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{recipe}", rank=rank, world_size=2)
    result = trained(folder, recipe, f"{recipe}-together")
    images, labels = _photos()
    shares = [slice(0, 9), slice(9, 12)]  # three parts of 3 photos against three of 1
    result["parted_loss"], model = parted_step(images[shares[rank]], labels[shares[rank]])
    result["parted_weights"] = copied(model.state_dict())
    try:
        parted_step(images[:11] if rank == 0 else images[11:], labels[:11] if rank == 0 else labels[11:])
    except TrainingError as error:
        result["refused"] = str(error)
    torch.save(result, f"{folder}/{recipe}-rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("two-workers"))
    tiny.write_normalized(f"{root}/normalized", {"north": [4] * 13, "south": [4] * 12})
    torch.set_num_threads(1)
    torch.save(trained(root, "float", "float-alone"), f"{root}/float-alone.pt")
    return root


def _pair(folder: str, recipe: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    mp.spawn(_rank_main, args=(folder, recipe), nprocs=2)
    together = [torch.load(Path(folder) / f"{recipe}-rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    if recipe == "float":
        return torch.load(Path(folder) / "float-alone.pt", weights_only=True), together
    return trained(folder, recipe, f"{recipe}-alone"), together


@pytest.fixture(scope="module")
def float_pair(folder: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return _pair(folder, "float")


def check_alike(alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    for result in together:
        assert len(result["losses"]) == len(alone["losses"]) == STEPS
        assert result["losses"] == pytest.approx(alone["losses"], rel=TOLERANCE)
        mine, theirs = without_dead_biases(alone["weights"]), without_dead_biases(result["weights"])
        assert mine.keys() == theirs.keys()
        for name, expected in mine.items():
            torch.testing.assert_close(
                theirs[name], expected, rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
            )


def without_dead_biases(weights: Weights) -> Weights:
    """The weights as they act. A convolution's bias in front of a batch norm has gradient 0 up to rounding, which Adam
    blows up to steps of its rate; the running mean contains that bias, and only their difference is ever used."""
    acting = dict(weights)
    for name in [name for name in weights if name.endswith(".conv.bias")]:
        mean = name.replace(".conv.bias", ".bn.running_mean")
        acting[mean] = acting[mean] - acting.pop(name)
    return acting


def test_float_recipe(float_pair: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, together = float_pair
    assert len(set(alone["losses"])) == STEPS, "a loss that stands still would prove nothing"
    check_alike(alone, together)


def test_batch_norm_parameters_are_trained(
    float_pair: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    """The reference's conversion makes new ones after the optimizer was built, which then never move."""
    _, together = float_pair
    norms = {name: value for name, value in together[0]["weights"].items() if name.endswith(".bn.weight")}
    assert len(norms) == 2 * 5
    assert all(not torch.equal(value, torch.ones_like(value)) for value in norms.values())


def test_shares_of_different_size_pass_in_equally_many_parts(
    float_pair: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    """Else one worker waits in a batch norm for a part that the other does not have."""
    first, second = float_pair[1]
    assert first["parted_loss"] == second["parted_loss"]
    for name, value in first["parted_weights"].items():
        assert torch.equal(value, second["parted_weights"][name]), name
    assert "a worker has 1 photos of this batch, too few for the 4 parts" in first["refused"]
    assert first["refused"] == second["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["hash", "hash_only"])
def test_hash_recipes(folder: str, recipe: str) -> None:
    check_alike(*_pair(folder, recipe))
