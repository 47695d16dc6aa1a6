"""The configuration of jobs/demo.py."""

from pydantic import Field

from placeray.config import Config
from placeray.model.backbone import BackboneConfig


class Step(Config):
    """One job script with one of its configs."""

    title: str = Field(description="what a reader is told")
    job: str = Field(description="name of the script in jobs/")
    config: str = Field(description="name of its file in jobs/configs/<job>/")
    values: tuple[str, ...] = Field(default=(), description="key=value pairs that differ from that file")


class DemoJob(Config):
    """The whole path on a drawn city."""

    root: str | None = Field(
        default=None,
        description="folder that the paths of all steps count from; null: $PLACERAY_ROOT or here",
    )
    backbone: BackboneConfig | None = Field(
        default=None,
        description="another frozen backbone than the toy one, such as {name: vit_small_patch14_dinov2, "
        "weights: dinov2_vits14_pretrain.pth}; give it a root of its own",
    )
    report: str = Field(default="runs/toy/report", description="report folder of the evaluate step")
    steps: tuple[Step, ...] = Field(min_length=1, description="what is run, in this order")
