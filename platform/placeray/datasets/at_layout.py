"""Sets in the datasets_vg form: `images/<split>/{database,queries}/**/@E@N@...@.jpg` (Pitts30k, evaluation
sets).

Sources: `gmberton/VPR-datasets-downloader` and the evaluation loader
`Lu-Feng/SelaVPRplusplus:datasets_ws.py`. Differs from it: extensions count in any case, and a name that
cannot be read is rejected instead of ending the run.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from placeray import storage
from placeray.datasets import at_names, photos
from placeray.datasets.photos import Draft
from placeray.datasets.source import CellPlaces, Listing, SourceBase, SplitName
from placeray.errors import DataError


class AtLayout(SourceBase):
    """One split of a set in the datasets_vg form, with its own positive rule."""

    kind: Literal["at_layout"]
    split: SplitName = "test"
    images_folder: str = Field(default="images/{split}", description="folder of the split below root")
    database: str | None = Field(
        default="database", description="folder of the map (SVOX: gallery); null = none"
    )
    queries: str | None = Field(
        default="queries", description="folder of the queries (SF-XL: queries_v1); null = none"
    )
    heading_from: Literal["field", "tile"] = Field(
        default="field", description="field 9, or (field 8 mod 12) * 30: the yaw inside a Pitts panorama"
    )
    frame_spacing_m: float | None = Field(
        default=None,
        gt=0,
        description="set where north only encodes a frame or pair number: frame = north / spacing, rounded "
        "(Nordland 25 / 10.5 = 2.381, AmsterTime and SPED 1000)",
    )
    places: CellPlaces = CellPlaces()


def list_photos(config: AtLayout) -> Listing:
    """Database and queries; for split train both together as photos of places, as the unified protocol
    does.
    """
    folder = config.images_folder.format(split=config.split)
    parts = []
    for role, name in (("database", config.database), ("query", config.queries)):
        if name is not None:
            below = f"{folder}/{name}"
            found = [
                _list_role(config, role, pc.binary_join_element_wise(pa.scalar(below), names, "/"))
                for names in photos.walk_images(storage.join(config.root, below))
            ]
            if not found:
                raise DataError(f"{config.key}: no photo below {storage.join(config.root, below)}")
            parts += found
    if not parts:
        raise DataError(f"{config.key}: database and queries are both null, so there is nothing to read")
    return photos.join_listings(config, parts)


def _list_role(config: AtLayout, role: str, paths: pa.Array) -> Listing:
    draft = at_names.draft_from_names(config, paths).text(role="train" if config.is_training else role)
    if config.is_training:
        draft.text(city=config.name.split("/")[-1])
    if config.frame_spacing_m is not None:
        draft.number(frame=np.round(draft.metres()[:, 1] / config.frame_spacing_m))
    if config.heading_from == "tile":
        draft.number(heading_deg=tile_headings(draft))
    return draft.finish()


def tile_headings(draft: Draft) -> photos.Floats:
    """Yaw from the tile number: 00-11 are pitch 1 and 24-35 pitch 2, each 30 degrees apart; NaN without a
    tile.

    The yaw counts from the first crop of its panorama; nothing proves that it points north.
    """
    tiles, bad = photos.parse_numbers(at_names.split_names(draft.paths)[at_names.TILE])
    draft.mark(bad, "bad_name", "the tile field is no number")
    return np.mod(tiles, 12) * 30.0
