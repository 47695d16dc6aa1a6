"""Configuration of jobs/promote.py: a challenger becomes the champion when it is no worse on one set."""

from pydantic import Field

from placeray.config import Config
from placeray.evaluation.benchmark import EvaluationConfig
from placeray.evaluation.verdict import JudgeConfig
from placeray.jobspecs.register import MODEL_NAME
from placeray.jobspecs.tracking import TrackingConfig
from placeray.model.describe import EmbedConfig


class EvaluationSetConfig(Config):
    """Photos with known positions that no model was trained on."""

    normalized: str = Field(min_length=1, description="folder that normalize wrote")
    dataset: str = Field(
        min_length=1, description="name of the source; its database and query photos are used"
    )
    split: str = Field(default="test", min_length=1, description="val or test")


class PromoteJob(Config):
    """Two versions of a registered model in; the alias of the champion moves, or one sentence says why not."""

    name: str = Field(pattern=MODEL_NAME, description="name of the registered model")
    challenger: str = Field(
        default="challenger",
        pattern=r"^[\w-]+$",
        coerce_numbers_to_str=True,
        description="who wants to be promoted: an alias, or a version number",
    )
    champion: str = Field(
        default="champion",
        pattern=r"^[A-Za-z_][\w-]*$",
        description="the alias that moves; nobody needs to hold it yet",
    )
    evaluate_on: EvaluationSetConfig = Field(description="the set both are evaluated on")
    judge: JudgeConfig = Field(default=JudgeConfig(), description="which figure decides, and the margin")
    output: str = Field(
        min_length=1,
        description="local folder of descriptors, maps and reports; finished ones are used again",
    )
    embed: EmbedConfig = Field(default=EmbedConfig(), description="batches and number format")
    measure: EvaluationConfig = Field(default=EvaluationConfig(), description="what is measured of each")
    num_workers: int = Field(default=2, ge=1, description="Ray actors, each with the model in memory")
    cpus_per_worker: float = Field(default=1.0, gt=0, description="Ray CPUs of one of them")
    gpus_per_worker: float = Field(
        default=0.0, ge=0, description="Ray GPUs of one of them; 0 runs on the CPU"
    )
    tracking: TrackingConfig = Field(default=TrackingConfig(), description="the store of models and runs")
