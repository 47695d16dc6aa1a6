"""Configuration of jobs/train.py: one recipe on normalized data, on one worker or many."""

from typing import Self

from pydantic import Field, model_validator

from placeray.config import Config
from placeray.jobspecs.register import MODEL_NAME
from placeray.jobspecs.tracking import TrackingConfig
from placeray.model.selavpr import ModelConfig
from placeray.training.config import TrainConfig


class WorkersConfig(Config):
    """The processes that train together."""

    num_workers: int = Field(
        default=1, ge=1, description="processes; the global batch is shared out among them"
    )
    min_workers: int | None = Field(
        default=None, ge=1, description="go on with so few when machines are lost; null waits for all of them"
    )
    cpus_per_worker: float = Field(default=1.0, gt=0, description="Ray CPUs of one worker")
    use_gpu: bool = Field(default=False, description="one GPU for each worker")
    torch_threads: int | None = Field(
        default=None,
        ge=1,
        description="threads of one worker's arithmetic; null: its share of the machine's cores",
    )
    max_failures: int = Field(
        default=3, ge=0, description="restarts from the last checkpoint after a lost worker"
    )

    @model_validator(mode="after")
    def _range_is_a_range(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} is more than num_workers={self.num_workers}")
        return self


class TrainJob(Config):
    """Normalized data in, checkpoint folder out."""

    normalized: str = Field(description="folder that normalize wrote")
    output: str = Field(description="checkpoint folder to write: model.pt and card.json")
    start_from: str | None = Field(
        default=None,
        description="checkpoint to start from (folder, file or models:/name@alias); recipe hash needs one",
    )
    model: ModelConfig = Field(description="the model to train")
    train: TrainConfig = Field(default=TrainConfig(), description="recipe, batches, optimizer, validation")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="processes that train together")
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="where the run is recorded")
    register_as: str | None = Field(
        default=None,
        pattern=MODEL_NAME,
        description="name in the model registry, whose challenger it becomes; null does not register",
    )
