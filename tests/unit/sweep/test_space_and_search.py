"""The search space and what is proposed from it."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from placeray.errors import ConfigError
from placeray.sweep.config import Sweep
from placeray.sweep.search import GridSearch, Known, OptunaSearch, RandomSearch, count, propose
from placeray.sweep.space import Distribution, draw, with_values

SPACE: dict[str, Any] = {
    "train.optimizer.lr": {"kind": "loguniform", "low": 1e-4, "high": 1e-2},
    "train.loss": {"base": {"kind": "uniform", "low": 0.0, "high": 0.5}},
    "model.float_head": {
        "kind": "choice",
        "values": [{"kind": "gem", "dim": 8}, {"kind": "boq", "channels": 64}],
    },
    "train.photos_per_place": {"kind": "randint", "low": 2, "high": 4},
}


def sweep(space: dict[str, Any] = SPACE, **changes: Any) -> Sweep:
    base = {
        "normalized": "n", "output": "o", "model": {"backbone": {"name": "toy"}}, "space": space,
        "train": {"validation": {"sets": [{"name": "v", "dataset": "toy"}]}},
    }  # fmt: skip
    return Sweep.model_validate(base | changes)


def test_paths_may_be_written_flat_or_nested() -> None:
    assert sorted(sweep().space) == [
        "model.float_head", "train.loss.base", "train.optimizer.lr", "train.photos_per_place"
    ]  # fmt: skip


def test_a_trial_is_the_training_job_with_its_values() -> None:
    values = {
        "train.optimizer.lr": 0.002,
        "model.float_head": {"kind": "boq", "channels": 64},
        "model.float_head.rows": 4,
    }
    spec = sweep().spec(3, values)
    assert spec.output == "o/trials/0003/checkpoint"
    assert spec.train.optimizer.lr == 0.002
    assert spec.model.float_head is not None
    assert spec.model.float_head.model_dump()["rows"] == 4


@pytest.mark.parametrize(
    ("path", "item", "said"),
    [
        ("train.optimizer.rate", {"kind": "uniform", "low": 0.1, "high": 0.2}, "optimizer.rate"),
        ("train.nothing.rate", {"kind": "uniform", "low": 0.1, "high": 0.2}, "holds no values"),
        ("train.epochs", {"kind": "choice", "values": [3, 0]}, "train.epochs: 0 does not fit"),
        ("train.optimizer.lr", {"kind": "uniform", "low": -1.0, "high": 0.2}, "-1.0 does not fit"),
    ],
)
def test_what_no_trial_could_do_is_said_before_the_first(path: str, item: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep({path: item}).check_space()


def test_bounds_in_the_wrong_order_and_unknown_kinds_are_refused() -> None:
    for item in ({"kind": "uniform", "low": 2.0, "high": 1.0}, {"kind": "normal", "mean": 0}):
        with pytest.raises(ValidationError):
            sweep({"train.optimizer.lr": item})
    with pytest.raises(ValidationError, match=r"compares trials by their validation recall"):
        sweep(train={})


bounds = st.tuples(st.integers(-50, 50), st.integers(1, 60)).map(lambda pair: (pair[0], pair[0] + pair[1]))
distributions = st.one_of(
    bounds.map(lambda b: {"kind": "uniform", "low": b[0], "high": b[1]}),
    bounds.map(lambda b: {"kind": "loguniform", "low": 2.0 ** (b[0] / 4), "high": 2.0 ** (b[1] / 4)}),
    st.tuples(bounds, st.integers(1, 7)).map(
        lambda x: {"kind": "randint", "low": x[0][0], "high": x[0][1], "step": x[1]}
    ),
    st.lists(st.integers(), min_size=1, max_size=5).map(lambda v: {"kind": "choice", "values": v}),
)


@given(distributions, st.integers(0, 2**32))
def test_what_is_drawn_lies_within(item: dict[str, Any], seed: int) -> None:
    distribution: Any = TypeAdapter(Distribution).validate_python(item)
    value = draw(distribution, np.random.default_rng(seed))
    if item["kind"] == "choice":
        assert value in item["values"]
    else:
        assert item["low"] * (1 - 1e-9) <= value * (1 + 1e-9) or item["low"] <= value
        assert value <= item["high"] or np.isclose(value, item["high"])
    if item["kind"] == "randint":
        assert (value - item["low"]) % item["step"] == 0


def test_a_grid_is_gone_through_whole_and_once() -> None:
    space = sweep(
        {"train.epochs": {"kind": "grid", "values": [1, 2, 3]}, "train.seed": {"kind": "choice", "values": [5, 6]}}
    ).space  # fmt: skip
    assert count(space, GridSearch(), 100) == 6
    assert count(space, GridSearch(), 4) == 4
    points = [propose(space, GridSearch(), [known({}) for _ in range(number)]) for number in range(6)]
    assert {(point["train.epochs"], point["train.seed"]) for point in points} == set(
        itertools.product([1, 2, 3], [5, 6])
    )
    with pytest.raises(ConfigError, match=r"train\.optimizer\.lr has bounds"):
        count(sweep({"train.optimizer.lr": SPACE["train.optimizer.lr"]}).space, GridSearch(), 3)


def known(values: dict[str, Any], score: float | None = None) -> Known:
    return Known(values, score, ended=score is not None, stopped_early=False)


def proposals(space: Any, search: Any, number: int) -> list[dict[str, Any]]:
    found: list[Known] = []
    for _ in range(number):
        found.append(known(propose(space, search, found)))
    return [dict(trial.values) for trial in found]


@pytest.mark.parametrize("search", [RandomSearch(seed=3), OptunaSearch(seed=3, random_trials=4)])
def test_proposals_follow_from_the_seed_cross_grids_and_seldom_repeat(search: Any) -> None:
    if search.kind == "optuna":
        pytest.importorskip("optuna")
    space = sweep(
        {"train.seed": {"kind": "grid", "values": [0, 1]}, "train.epochs": {"kind": "choice", "values": [1, 2, 3]}}
    ).space  # fmt: skip
    first = proposals(space, search, 6)
    assert first == proposals(dict(reversed(list(space.items()))), search, 6)
    assert [values["train.seed"] for values in first] == [0, 1, 0, 1, 0, 1]
    assert len({tuple(sorted(values.items())) for values in first}) == 6, "six points, each met once"


def test_optuna_learns_from_finished_failed_and_stopped_trials() -> None:
    pytest.importorskip("optuna")
    space = sweep(
        {"train.optimizer.lr": SPACE["train.optimizer.lr"], "model.float_head": SPACE["model.float_head"]}
    ).space
    found: list[Known] = []
    for number in range(40):
        values = propose(space, OptunaSearch(seed=0), found)
        # Best at lr = 1e-3 with the second head; every tenth trial fails, every seventh is stopped.
        score = (
            1.0
            - abs(np.log10(values["train.optimizer.lr"]) + 3)
            - (values["model.float_head"]["kind"] == "gem")
        )
        found.append(
            Known(values, None if number % 10 == 9 else float(score), True, stopped_early=number % 7 == 6)
        )
    early = [trial.score for trial in found[:8] if trial.score is not None]
    late = [trial.score for trial in found[-15:] if trial.score is not None]
    assert np.mean(late) > np.mean(early) + 0.3


def test_values_go_where_their_path_leads_and_the_base_stays() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert with_values(base, {"a.c.d": 9, "a.c": {"d": 0, "f": 1}, "e": 4}) == {
        "a": {"b": 1, "c": {"d": 9, "f": 1}},
        "e": 4,
    }
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    with pytest.raises(KeyError, match="e holds no values"):
        with_values(base, {"e.x": 1})
