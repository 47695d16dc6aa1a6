"""What decides a sweep: the run every trial starts from, what varies, how it is searched and given up."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from placeray.config import Config
from placeray.errors import ConfigError
from placeray.model.selavpr import ModelConfig
from placeray.sweep.asha import AshaConfig
from placeray.sweep.search import RandomSearch, SearchConfig, count
from placeray.sweep.space import Distribution, examples, flat_space, with_values
from placeray.training.config import TrainConfig
from placeray.training.run import RunSpec


class Sweep(Config):
    """A training job, the values in it that vary, and the way they are searched."""

    normalized: str = Field(description="folder that normalize wrote")
    output: str = Field(description="folder of the sweep: trials/, report.html, sweep.json")
    start_from: str | None = Field(
        default=None, description="checkpoint every trial starts from; recipe hash needs one"
    )
    model: ModelConfig = Field(description="the model of every trial, as far as the space does not change it")
    train: TrainConfig = Field(
        default=TrainConfig(),
        description="the training of every trial, as far as the space does not change it",
    )
    space: Annotated[dict[str, Distribution], BeforeValidator(flat_space)] = Field(
        min_length=1,
        description="dotted path, such as train.optimizer.lr or model.float_head -> what may stand there",
    )
    search: SearchConfig = Field(default=RandomSearch(), description="random, grid or optuna")
    trials: int = Field(default=8, ge=1, description="most trials in all")
    time_limit_s: float | None = Field(
        default=None,
        gt=0,
        description="no trial starts later, running ones end with their epoch; null: no limit",
    )
    early_stopping: AshaConfig | None = Field(
        default=AshaConfig(), description="give up trials that fall behind (ASHA); null trains all to the end"
    )
    pack: int = Field(
        default=1,
        ge=1,
        description="most trials that ride on one forward pass of the backbone in one process; only trials of equal "
        "backbone, data, batches, augmentation, size and precision ride together",
    )

    @model_validator(mode="after")
    def _trials_can_be_compared(self) -> Self:
        if not self.train.validation.sets:
            raise ValueError(
                "train.validation.sets is empty: a sweep compares trials by their validation recall"
            )
        return self

    @property
    def num_trials(self) -> int:
        """How many trials there will be."""
        return count(self.space, self.search, self.trials)

    def spec(self, number: int, values: Mapping[str, Any]) -> RunSpec:
        """The run of one trial, as `jobs/train.py` would be told to do it.

        Raises:
            ConfigError: the values do not fit together.
        """
        base = self.model_dump(mode="json", include={"start_from", "model", "train"})
        run = {"normalized": self.normalized, "output": f"{self.output}/trials/{number:04d}/checkpoint"}
        try:
            return RunSpec.model_validate({**with_values(base, values), **run})
        except KeyError as error:
            raise ConfigError(f"space.{error.args[0]}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or ", ".join(values)
            raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None

    def check_space(self) -> None:
        """Say now what every trial would say later.

        Raises:
            ConfigError: names a path of the space that is none of the training job, or a value that does not fit.
        """
        for path, item in self.space.items():
            for value in examples(item):
                try:
                    self.spec(0, {path: value})
                except ConfigError as error:
                    raise ConfigError(f"space.{path}: {value!r} does not fit: {error}") from None
