"""File names whose fields stand between '@': SF-XL, Pitts30k in the datasets_vg form, and every evaluation
set.

Source: the table of `VPR-datasets-downloader:util.py` and the SF-XL README. Only the base name is taken
apart: a folder may hold an '@' (the reference splits the whole path and breaks there).
"""

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from placeray.datasets import photos
from placeray.datasets.photos import Draft
from placeray.datasets.source import SourceBase

# Position of a field in the base name without its extension.
EAST, NORTH, ZONE_NUMBER, ZONE_LETTER, LAT, LON, PANORAMA, TILE, HEADING = range(1, 10)
CAPTURED, NOTE, NUM_FIELDS = 13, 14, 16


def draft_from_names(config: SourceBase, paths: pa.Array) -> Draft:
    """Fill position, heading, panorama and time from the base names of `paths`.

    A name needs the first two fields; the evaluation sets of this field carry no more than these for some
    photos. A name with fewer, or with text where a number belongs, is rejected as bad_name.
    """
    draft = Draft(config, paths)
    fields = split_names(draft.paths)
    draft.mark(fields.count < NORTH, "bad_name", "the name has no fields between '@'")
    draft.parse("utm_east", fields[EAST], "bad_name").parse("utm_north", fields[NORTH], "bad_name")
    draft.parse("lat", fields[LAT], "bad_name").parse("lon", fields[LON], "bad_name")
    draft.parse("heading_deg", fields[HEADING], "bad_heading")
    return draft.text(
        utm_zone=_zones(fields),
        panorama_id=fields[PANORAMA],
        captured=photos.parse_captured(fields[CAPTURED]),
    )


class NameFields:
    """The text fields of n base names. `count`: (n,) how many '@' each name has; fields beyond are empty."""

    def __init__(self, parts: pa.Array, count: npt.NDArray[np.int64]) -> None:
        self._parts = parts
        self.count = count

    def __getitem__(self, index: int) -> pa.Array:
        return pc.list_element(self._parts, index)


def split_names(paths: pa.Array) -> NameFields:
    """Take the base names apart."""
    bare = photos.basenames(paths)
    count = pc.count_substring(bare, "@").to_numpy(zero_copy_only=False).astype(np.int64)
    if (
        len(count) and count.min() < NUM_FIELDS - 1
    ):  # the extension of a full name is its last field, out of the way
        stems = pc.replace_substring_regex(bare, r"\.[A-Za-z]+$", "")
        bare = pc.binary_join_element_wise(stems, pa.scalar("@" * NUM_FIELDS), "")
    return NameFields(pc.split_pattern(bare, "@"), count)


def _zones(fields: NameFields) -> pa.Array:
    """Zone and band such as 10S; empty where a name has no such thing. Few differ, so each is read once."""
    words = pc.binary_join_element_wise(fields[ZONE_NUMBER], fields[ZONE_LETTER], "@").dictionary_encode()
    known = []
    for word in words.dictionary.to_pylist():
        number, letter = word.split("@")
        zone = f"{number.zfill(2)}{letter.upper()}"
        known.append(zone if re.fullmatch(r"[0-9]{2}[C-HJ-NP-X]", zone) else "")
    return pa.array(known, pa.string()).take(words.indices)
