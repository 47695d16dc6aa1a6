"""What a training run can be told; every part sits beside its neighbours because they are read together."""

from typing import Literal, Self

from pydantic import Field, model_validator

from placeray.config import Config
from placeray.losses import LossConfig
from placeray.model.augment import AugmentConfig
from placeray.model.precision import Precision
from placeray.model.preprocess import PreprocessConfig
from placeray.model.recipes import RecipeName


class OptimizerConfig(Config):
    """Optimizer and schedule; the defaults are the reference's (Adam, rate halved every 3 epochs)."""

    kind: Literal["adam", "adamw", "sgd"] = Field(default="adam", description="sgd has momentum 0.9")
    lr: float = Field(default=4e-4, gt=0, description="learning rate of the first step after warm-up")
    weight_decay: float | None = Field(default=None, ge=0, description="null: adam 0, adamw 9.5e-9, sgd 1e-3")
    schedule: Literal["step", "cosine", "constant"] = Field(default="step", description="how the rate falls")
    decay: float = Field(default=0.5, gt=0, le=1, description="factor of the step schedule")
    decay_every_epochs: float = Field(
        default=3.0, gt=0, description="epochs between two falls of the step schedule"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the rate rises linearly")
    clip_norm: float | None = Field(
        default=None, gt=0, description="largest gradient norm; null does not clip"
    )


class FeedConfig(Config):
    """How photos reach the model."""

    decode_threads: int = Field(default=2, ge=1, description="threads that decode and augment, per worker")
    prefetch_batches: int = Field(
        default=3, ge=1, description="ready batches that may wait in memory, per worker"
    )


class ValidationSetConfig(Config):
    """A held-out set of the normalized data: its database and query photos lie in the images folder."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name in metrics, such as msls-val")
    dataset: str = Field(description="dataset of the normalized images")
    split: str = Field(default="val", description="split of the normalized images")
    max_queries: int | None = Field(
        default=None, ge=1, description="use only the first queries; null uses all"
    )


class ValidationConfig(Config):
    """When and on what the model is judged while it trains."""

    sets: tuple[ValidationSetConfig, ...] = Field(
        default=(), description="none: the last weights are the result"
    )
    every_epochs: int = Field(default=1, ge=1, description="the last epoch is always judged")
    best_by: str | None = Field(
        default=None, description="set whose R@1 + R@5 picks the best epoch; null: their mean"
    )
    patience: int = Field(default=12, ge=1, description="stop after so many judgements without a better one")
    shortlist: int = Field(default=100, ge=1, description="candidates that stage 1 hands to stage 2")
    batch_size: int = Field(default=64, ge=1, description="photos described at once")

    @model_validator(mode="after")
    def _best_by_names_a_set(self) -> Self:
        names = [item.name for item in self.sets]
        if len(set(names)) != len(names):
            raise ValueError(f"two validation sets share a name: {names}")
        if self.best_by is not None and self.best_by not in names:
            raise ValueError(f"best_by={self.best_by!r} is none of the validation sets {names}")
        return self


class TrainConfig(Config):
    """One training run of one recipe."""

    recipe: RecipeName = Field(
        default="float", description="float branch; hash branch on a trained float branch; hash branch alone"
    )
    epochs: int = Field(default=25, ge=1, description="passes over all places")
    places_per_batch: int = Field(default=120, ge=2, description="P of the global batch, over all workers")
    photos_per_place: int = Field(default=4, ge=2, description="K, sampled anew whenever a place is met")
    min_places_per_batch: int = Field(
        default=2,
        ge=2,
        description="a smaller rest of a domain is evened out with the batch before it; a domain with fewer places "
        "takes no part",
    )
    batch_order: Literal["reshuffled", "fixed"] = Field(
        default="reshuffled",
        description="reshuffled: other places meet in every epoch; fixed: the reference's order, the same in every "
        "epoch, domain after domain",
    )
    micro_batch: int | None = Field(
        default=None,
        ge=2,
        description="photos in memory at once, per worker: larger batches are passed in equal parts, the loss still "
        "sees all pairs of the batch; costs a second forward, and BatchNorm normalises each part by itself; "
        "null passes the batch in one go",
    )
    precision: Precision = Field(
        default="fp32", description="of the forward pass; the loss is always float32; fp16 needs a GPU"
    )
    seed: int = Field(default=0, ge=0, description="order, choice and augmentation of photos, fresh weights")
    float_branch_drifts: bool = Field(
        default=False,
        description="recipe hash only: run the frozen float branch in training mode as the published code does, "
        "which moves its batch norm statistics and costs time",
    )
    preprocess: PreprocessConfig = Field(default=PreprocessConfig(), description="from photo to input")
    augment: AugmentConfig = Field(default=AugmentConfig(), description="RandAugment on every training photo")
    loss: LossConfig = Field(default=LossConfig(), description="multi-similarity and hashing loss")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="optimizer and schedule")
    feed: FeedConfig = Field(default=FeedConfig(), description="decoding and prefetching")
    validation: ValidationConfig = Field(default=ValidationConfig(), description="held-out judgement")
    checkpoint_every_steps: int | None = Field(
        default=None, ge=1, description="also save inside an epoch; null saves at the end of each epoch"
    )
    log_every_s: float = Field(default=5.0, ge=0, description="seconds between two progress lines")
