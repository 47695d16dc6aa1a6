"""The configuration of jobs/demo.py."""

from pydantic import Field

from placeray.config import Config
from placeray.model.backbone import BackboneConfig


class DemoJob(Config):
    """The whole path on a drawn city."""

    root: str | None = Field(
        default=None, description="folder that the paths of all steps count from; null: $PLACERAY_ROOT or here"
    )
    backbone: BackboneConfig | None = Field(
        default=None,
        description="another frozen backbone than the toy one, such as {name: vit_small_patch14_dinov2, "
        "weights: dinov2_vits14_pretrain.pth}; give it a root of its own",
    )
