"""Where runs are recorded: a part of every job's configuration."""

from pydantic import Field

from placeray.config import Config


class TrackingConfig(Config):
    """MLflow tracking of a job."""

    enabled: bool = Field(default=True, description="false records nothing")
    uri: str = Field(
        default="sqlite:///runs/mlflow.db",
        description="tracking server or sqlite file; a relative file counts like every other path of the job",
    )
    artifacts: str | None = Field(
        default="runs/mlartifacts",
        description="folder or s3:// prefix of files and models; null: the server decides",
    )
    experiment: str = Field(default="placeray", min_length=1, description="name of the experiment")
