"""What to try next: random, grid, or Optuna's tree-structured Parzen estimator.

A proposal follows from the configuration, the trial's number and the trials before it alone. Nothing has to be
remembered from one run of the job to the next but the trials themselves.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from placeray.config import Config
from placeray.errors import ConfigError
from placeray.sweep.space import Choice, Distribution, Grid, LogUniform, RandInt, Uniform, draw

_REDRAWS = 50


class RandomSearch(Config):
    """Every trial is drawn on its own."""

    kind: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0, description="of the draws")


class GridSearch(Config):
    """All combinations of choices and grids, the last path in the order of names changing fastest."""

    kind: Literal["grid"] = "grid"


class OptunaSearch(Config):
    """Draws where finished trials were good (multivariate TPE); grids are gone through in order."""

    kind: Literal["optuna"] = "optuna"
    seed: int = Field(default=0, ge=0, description="of the draws")
    random_trials: int = Field(default=8, ge=1, description="finished trials before it begins to learn")


SearchConfig = Annotated[RandomSearch | GridSearch | OptunaSearch, Field(discriminator="kind")]
Space = Mapping[str, Distribution]


class Known(NamedTuple):
    """What a search knows of a trial that was proposed before."""

    values: Mapping[str, Any]
    score: float | None  # larger is better; None: not known, or it failed
    ended: bool
    stopped_early: bool


def count(space: Space, search: SearchConfig, limit: int) -> int:
    """Number of trials: `limit`, or fewer where a grid has fewer points.

    Raises:
        ConfigError: a grid search over something that has no list of values.
    """
    if not isinstance(search, GridSearch):
        return limit
    endless = [path for path, item in space.items() if not isinstance(item, Choice | Grid)]
    if endless:
        raise ConfigError(f"search.kind=grid needs lists of values; {', '.join(endless)} has bounds instead")
    points = 1
    for item in space.values():
        points *= len(_values(item))
    return min(limit, points)


def propose(space: Space, search: SearchConfig, known: Sequence[Known]) -> dict[str, Any]:
    """The values of trial number `len(known)`, by path. Repeats an earlier proposal only when others are rare."""
    number = len(known)
    space = dict(sorted(space.items()))  # the order in which they were written makes no difference
    if isinstance(search, GridSearch):
        return _grid_point(space, number)
    fixed = _grid_point({path: item for path, item in space.items() if isinstance(item, Grid)}, number)
    earlier = {_written(trial.values) for trial in known}
    values: dict[str, Any] = {}
    for attempt in range(_REDRAWS):
        if isinstance(search, OptunaSearch):
            values = _ask_optuna(space, search, known, fixed, attempt)
        else:
            rng = np.random.default_rng([search.seed, number, attempt])
            values = {path: fixed.get(path, draw(item, rng)) for path, item in space.items()}
        if _written(values) not in earlier:
            break
    return values


def _grid_point(space: Space, number: int) -> dict[str, Any]:
    points = itertools.product(*(_values(item) for item in space.values()))
    size = int(np.prod([len(_values(item)) for item in space.values()], dtype=np.int64))
    point = next(itertools.islice(points, number % size, None))
    return dict(zip(space, point, strict=True))


def _values(item: Distribution) -> tuple[Any, ...]:
    assert isinstance(item, Choice | Grid)
    return item.values


def _written(values: Any) -> str:
    return json.dumps(values, sort_keys=True)


def _ask_optuna(
    space: Space, search: OptunaSearch, known: Sequence[Known], fixed: Mapping[str, Any], attempt: int
) -> dict[str, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=(search.seed * 1_000_003 + len(known)) * _REDRAWS + attempt,
        n_startup_trials=search.random_trials, multivariate=True, constant_liar=True, warn_independent_sampling=False,
    )  # fmt: skip
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {path: _of_optuna(item) for path, item in space.items()}
    for trial in known:
        study.add_trial(_told(trial, space, distributions))
    if fixed:
        study.enqueue_trial({path: _written(value) for path, value in fixed.items()})
    asked = study.ask(distributions).params
    return {path: _from_optuna(item, asked[path]) for path, item in space.items()}


def _told(trial: Known, space: Space, distributions: Mapping[str, Any]) -> Any:
    import optuna

    states = optuna.trial.TrialState
    params = {path: _to_optuna(item, trial.values[path]) for path, item in space.items()}
    if not trial.ended:
        return optuna.trial.create_trial(
            params=params, distributions=dict(distributions), state=states.RUNNING
        )
    if trial.score is None:
        return optuna.trial.create_trial(params=params, distributions=dict(distributions), state=states.FAIL)
    if trial.stopped_early:
        return optuna.trial.create_trial(
            params=params, distributions=dict(distributions), state=states.PRUNED,
            intermediate_values={1: trial.score},
        )  # fmt: skip
    return optuna.trial.create_trial(
        params=params, distributions=dict(distributions), value=trial.score, state=states.COMPLETE
    )


def _of_optuna(item: Distribution) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(item, Uniform | LogUniform):
        return FloatDistribution(item.low, item.high, log=isinstance(item, LogUniform))
    if isinstance(item, RandInt):
        high = item.high - (item.high - item.low) % item.step
        return IntDistribution(item.low, high, step=item.step)
    return CategoricalDistribution([_written(value) for value in _values(item)])


def _to_optuna(item: Distribution, value: Any) -> Any:
    return _written(value) if isinstance(item, Choice | Grid) else value


def _from_optuna(item: Distribution, value: Any) -> Any:
    return json.loads(value) if isinstance(item, Choice | Grid) else value
