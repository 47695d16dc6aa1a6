"""Where runs are recorded and registered models are found: a part of every job's configuration that needs it."""

from pydantic import Field

from placeray.config import Config


class StoreConfig(Config):
    """The MLflow store that `models:/name@alias` and `models:/name/3` are looked up in."""

    uri: str = Field(
        default="sqlite:///runs/mlflow.db",
        description="tracking server or sqlite file; a relative file counts like every other path of the job",
    )
    models: str = Field(
        default="runs/models",
        description="folder or s3:// prefix that every worker reads: where a model whose files are behind a server "
        "or in an object store is copied to, once",
    )


class TrackingConfig(StoreConfig):
    """MLflow tracking of a job."""

    enabled: bool = Field(default=True, description="false records nothing")
    artifacts: str | None = Field(
        default="runs/mlartifacts",
        description="folder or s3:// prefix of files and models; null: the server decides",
    )
    experiment: str = Field(default="placeray", min_length=1, description="name of the experiment")
