"""The heads: what turns the patches at the end of a side branch into one descriptor. One line each."""

from typing import Annotated

from pydantic import Field

from placeray.model.boq import BoqConfig, BoqHead
from placeray.model.gem import GemConfig, GemHead
from placeray.model.salad import SaladConfig, SaladHead

HeadConfig = Annotated[GemConfig | BoqConfig | SaladConfig, Field(discriminator="kind")]
Head = GemHead | BoqHead | SaladHead

HEADS: dict[str, type[GemHead] | type[BoqHead] | type[SaladHead]] = {
    "gem": GemHead,
    "boq": BoqHead,
    "salad": SaladHead,
}


def build_head(config: GemConfig | BoqConfig | SaladConfig, width: int) -> Head:
    """The head of a config for tokens of `width` channels."""
    return HEADS[config.kind](width, config)  # type: ignore[arg-type]  # kind and config class go together
