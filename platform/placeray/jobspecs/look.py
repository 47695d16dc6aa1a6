"""The configuration of jobs/look.py."""

from pydantic import Field

from placeray.config import Config
from placeray.overview.config import LookConfig


class LookJob(Config):
    """Normalized data sets in, figures and a page out."""

    output: str = Field(min_length=1, description="folder of page.html, overview.json and leakage.csv")
    look: LookConfig
