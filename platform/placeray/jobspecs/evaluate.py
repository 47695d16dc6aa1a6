"""The configuration of jobs/evaluate.py."""

from pydantic import Field

from placeray.config import Config
from placeray.evaluation.run import BenchmarkConfig, PageConfig, SystemConfig
from placeray.jobspecs.tracking import TrackingConfig


class EvaluateJob(Config):
    """Maps and described queries in, a report and a page out."""

    output: str = Field(min_length=1, description="folder of the report; belongs to this config alone")
    benchmark: BenchmarkConfig = Field(description="what is asked and which answers are right")
    system: SystemConfig = Field(description="what is evaluated")
    checkpoint: str | None = Field(
        default=None,
        description="refuse a system that was not made by this model (folder, file or models:/name@alias); null "
        "takes whatever made it",
    )
    baseline: SystemConfig | None = Field(
        default=None, description="what it is compared with, such as untrained"
    )
    page: PageConfig = Field(default=PageConfig(), description="the HTML page")
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="where the run is recorded")

    @property
    def systems(self) -> tuple[SystemConfig, ...]:
        """Baseline first."""
        return (self.system,) if self.baseline is None else (self.baseline, self.system)
