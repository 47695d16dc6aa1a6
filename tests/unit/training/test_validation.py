"""Judging while training: recall of every stage against slow twins, sharing over ranks, clear errors."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from placeray.errors import DataError
from placeray.model.backbone import BackboneConfig
from placeray.model.describe import Described
from placeray.model.gem import GemConfig
from placeray.model.preprocess import PreprocessConfig
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model
from placeray.training import validation
from placeray.training.config import ValidationConfig, ValidationSetConfig
from placeray.training.validation import (
    ValidationSet,
    describe_photos,
    judge,
    load_validation_set,
    recalls,
    score,
)

SET = ValidationSetConfig(name="toy-val", dataset="toy", split="val")
INPUT = PreprocessConfig(size_px=28)


@pytest.fixture(scope="module")
def model() -> SelaVPR:
    backbone = BackboneConfig(name="toy", embed_dim=64, num_heads=1, depth=1)
    return build_model(ModelConfig(backbone=backbone, float_head=GemConfig(dim=16), hash_bits=16))


def _random_case(seed: int) -> tuple[ValidationSet, Described, Described]:
    rng = np.random.default_rng(seed)
    database, queries = 40, 23

    def described(count: int) -> Described:
        floats = rng.normal(size=(count, 8)).astype(np.float32)
        return Described(
            floats, rng.integers(0, 4, (count, 2), dtype=np.uint8)
        )  # few values: many equal distances

    right = [np.unique(rng.integers(0, database, rng.integers(0, 4))) for _ in range(queries)]
    return (
        ValidationSet("s", [b""] * database, [b""] * queries, right),
        described(database),
        described(queries),
    )


@pytest.mark.parametrize("seed", range(5))
def test_recalls_equal_an_obvious_loop(seed: int) -> None:
    item, database, queries = _random_case(seed)
    assert database.float is not None
    assert database.codes is not None
    assert queries.float is not None
    assert queries.codes is not None
    hits = {f"s/{stage}/recall_at_{k}": 0.0 for stage in ("float", "binary", "two_stage") for k in (1, 5, 10)}
    for q, right in enumerate(item.right):
        hamming = [
            sum(bin(a ^ b).count("1") for a, b in zip(queries.codes[q], row))
            for row in database.codes.tolist()
        ]
        similarity = [float(np.dot(queries.float[q], row)) for row in database.float]
        binary = sorted(range(40), key=lambda row: (hamming[row], row))
        orders = {
            "float": sorted(range(40), key=lambda row: -similarity[row]),
            "binary": binary,
            "two_stage": sorted(binary[:15], key=lambda row: -similarity[row]),
        }
        for stage, order in orders.items():
            for k in (1, 5, 10):
                hits[f"s/{stage}/recall_at_{k}"] += any(row in right for row in order[:k]) / len(item.right)
    assert recalls(item, database, queries, shortlist=15) == pytest.approx(hits)


def test_a_small_database_has_no_recall_beyond_its_size() -> None:
    item, database, queries = _random_case(0)
    small = ValidationSet("s", item.database[:7], item.queries, [rows[rows < 7] for rows in item.right])
    assert database.float is not None
    assert database.codes is not None
    metrics = recalls(small, Described(database.float[:7], database.codes[:7]), queries, shortlist=100)
    assert {key.rsplit("_", 1)[1] for key in metrics} == {"1", "5"}


def test_the_set_is_read_with_its_right_answers(normalized: str) -> None:
    item = load_validation_set(normalized, SET)
    assert (len(item.database), len(item.queries)) == (8, 8)
    assert [rows.tolist() for rows in item.right] == [[row] for row in range(8)]
    assert len(load_validation_set(normalized, SET.model_copy(update={"max_queries": 3})).queries) == 3


def test_a_missing_set_is_said_with_those_there_are(normalized: str) -> None:
    with pytest.raises(DataError, match=r"has no nowhere/val; it has \['toy/val'\]"):
        load_validation_set(normalized, ValidationSetConfig(name="x", dataset="nowhere"))


def test_a_set_without_any_right_answer_is_said(
    tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = {"utm_east": 500_000.0, "utm_north": 4_000_000.0, "utm_zone": "10S"}
    positions = iter([far] * 4 + [{**far, "utm_north": 4_900_000.0}] * 2)
    monkeypatch.setattr(tiny, "_position", lambda place: next(positions, far))
    root = tiny.write_normalized(str(tmp_path), {"a": [1, 1]}, val_places=2)
    with pytest.raises(DataError, match="no query of toy/val has a right answer"):
        load_validation_set(root, SET)


def test_judging_leaves_mode_and_branches_as_they_were(model: SelaVPR, normalized: str) -> None:
    model.train()
    model.set_branches(float=False, code=True)
    config = ValidationConfig(sets=(SET,), batch_size=3)
    metrics = judge(model, [load_validation_set(normalized, SET)], config, INPUT)
    assert model.training
    assert (model.branches.float, model.branches.code) == (False, True)
    assert {key.split("/")[1] for key in metrics} == {"float", "binary", "two_stage"}
    model.set_branches(float=True, code=False)
    metrics = judge(model, [load_validation_set(normalized, SET)], config, INPUT)
    assert {key.split("/")[1] for key in metrics} == {"float"}
    model.set_branches(float=True, code=True)


def test_ranks_share_the_photos_and_all_get_every_row_in_order(
    model: SelaVPR, normalized: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = load_validation_set(normalized, SET).database
    alone = describe_photos(model, photos, 3, INPUT, "fp32")
    world, shares = 2, {}
    monkeypatch.setattr(validation, "world_size", lambda: world)
    for number in range(world):
        monkeypatch.setattr(validation, "rank", lambda number=number: number)
        monkeypatch.setattr(
            validation,
            "_collect",
            lambda parts, number=number: shares.update({number: parts}) or [parts, parts],
        )
        describe_photos(model, photos[:6], 3, INPUT, "fp32")  # two batches: one for each rank
    monkeypatch.setattr(validation, "_collect", lambda parts: [shares[0], shares[1]])
    together = describe_photos(model, photos[:6], 3, INPUT, "fp32")
    assert alone.float is not None
    assert together.float is not None
    np.testing.assert_array_equal(together.float, alone.float[:6])


def test_the_best_epoch_is_picked_by_r1_plus_r5_of_the_last_stage() -> None:
    metrics = {
        "a/float/recall_at_1": 0.9, "a/float/recall_at_5": 0.9,
        "a/two_stage/recall_at_1": 0.2, "a/two_stage/recall_at_5": 0.4,
        "b/float/recall_at_1": 0.5, "b/float/recall_at_5": 0.7,
    }  # fmt: skip
    sets = [{"name": name, "dataset": "d"} for name in ("a", "b")]
    assert score(metrics, ValidationConfig.model_validate({"sets": sets})) == pytest.approx((0.6 + 1.2) / 2)
    assert score(metrics, ValidationConfig.model_validate({"sets": sets, "best_by": "b"})) == pytest.approx(
        1.2
    )
