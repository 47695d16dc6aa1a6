"""Configuration of jobs/tune.py: a sweep, the resources of its workers, where it is recorded."""

from pydantic import Field

from placeray.config import Config
from placeray.jobspecs.tracking import TrackingConfig
from placeray.sweep.config import Sweep


class SweepWorkersConfig(Config):
    """The processes that train trials, each one pack at a time."""

    at_once: int = Field(default=1, ge=1, description="packs that train at the same time")
    cpus: float = Field(default=1.0, gt=0, description="Ray CPUs of one pack; may be a fraction")
    gpus: float = Field(default=0.0, ge=0, description="GPUs of one pack; a fraction shares one among packs")
    torch_threads: int | None = Field(
        default=None,
        ge=1,
        description="threads of one pack's arithmetic; null: its share of the machine's cores",
    )
    max_failures: int = Field(default=2, ge=0, description="restarts of a pack whose process was lost")


class TuneJob(Sweep):
    """Many trials of one training job, the best of them named."""

    workers: SweepWorkersConfig = Field(
        default=SweepWorkersConfig(), description="processes that train trials"
    )
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="where the sweep is recorded")
    register_as: str | None = Field(
        default=None,
        min_length=1,
        description="name of the best model in the registry; null does not register",
    )

    @property
    def sweep(self) -> Sweep:
        """The sweep alone: what the workers need to know."""
        return Sweep.model_validate(self.model_dump(mode="json", include=set(Sweep.model_fields)))
