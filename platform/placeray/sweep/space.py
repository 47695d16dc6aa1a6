"""The search space: for some values of a training job, named by their dotted paths, what may stand there."""

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, model_validator

from placeray.config import Config


class Choice(Config):
    """One of some values, whatever their kind: numbers, names, whole sub-configs."""

    kind: Literal["choice"] = "choice"
    values: tuple[Any, ...] = Field(min_length=1, description="what may be chosen, all equally likely")


class Grid(Config):
    """All of some values: trials go through them in order, crossed with every other grid."""

    kind: Literal["grid"] = "grid"
    values: tuple[Any, ...] = Field(min_length=1, description="what is tried one after the other")


R = TypeVar("R", "Uniform", "LogUniform", "RandInt")


def _low_below_high(bounds: R) -> R:
    if bounds.low >= bounds.high:
        raise ValueError(f"low={bounds.low:g} is not below high={bounds.high:g}")
    return bounds


class Uniform(Config):
    """A number between two bounds."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    _ordered = model_validator(mode="after")(_low_below_high)


class LogUniform(Config):
    """A positive number between two bounds, every order of magnitude equally likely."""

    kind: Literal["loguniform"] = "loguniform"
    low: float = Field(gt=0, description="smallest value")
    high: float = Field(gt=0, description="largest value")
    _ordered = model_validator(mode="after")(_low_below_high)


class RandInt(Config):
    """A whole number; both bounds may be drawn."""

    kind: Literal["randint"] = "randint"
    low: int = Field(description="smallest value")
    high: int = Field(description="largest value")
    step: int = Field(default=1, ge=1, description="distance of neighbouring values, counted from low")
    _ordered = model_validator(mode="after")(_low_below_high)


Distribution = Annotated[Choice | Grid | Uniform | LogUniform | RandInt, Field(discriminator="kind")]


def flat_space(space: Any, prefix: str = "") -> Any:
    """`{train: {optimizer: {lr: {kind: ...}}}}` -> `{"train.optimizer.lr": {kind: ...}}`; both may be written."""
    if not isinstance(space, Mapping):
        return space
    flat: dict[str, Any] = {}
    for name, value in space.items():
        if isinstance(value, Mapping) and "kind" not in value:
            flat.update(flat_space(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def draw(distribution: Distribution, rng: np.random.Generator) -> Any:
    """One value; of a grid its first, because whoever draws goes through grids in order."""
    if isinstance(distribution, Grid):
        return distribution.values[0]
    if isinstance(distribution, Choice):
        return distribution.values[int(rng.integers(len(distribution.values)))]
    if isinstance(distribution, Uniform):
        return float(rng.uniform(distribution.low, distribution.high))
    if isinstance(distribution, LogUniform):
        return float(np.exp(rng.uniform(np.log(distribution.low), np.log(distribution.high))))
    steps = (distribution.high - distribution.low) // distribution.step
    return distribution.low + distribution.step * int(rng.integers(steps + 1))


def examples(distribution: Distribution) -> tuple[Any, ...]:
    """Values that show whether a path and its bounds fit: all that are listed, or both bounds."""
    if isinstance(distribution, Choice | Grid):
        return distribution.values
    return (distribution.low, distribution.high)


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with some replaced, short paths first.

    Raises:
        KeyError: a path leads into nothing, or into a plain value.
    """
    changed = copy.deepcopy(dict(config))
    for path in sorted(values, key=lambda path: path.count(".")):
        *parents, last = path.split(".")
        node: Any = changed
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise KeyError(f"{path}: {'.'.join(parents)} holds no values in this configuration")
        node[last] = values[path]
    return changed
