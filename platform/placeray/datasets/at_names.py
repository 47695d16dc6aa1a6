"""File names whose fields stand between '@': SF-XL, Pitts30k in the datasets_vg form, and every evaluation
set.

Source: the table of `VPR-datasets-downloader:util.py` and the SF-XL README. Only the base name is taken
apart: a folder may hold an '@' (the reference splits the whole path and breaks there).
"""

import pyarrow as pa
import pyarrow.compute as pc

from placeray.datasets import photos
from placeray.datasets.photos import Draft
from placeray.datasets.source import SourceBase

# Position of a field in the base name without its extension.
EAST, NORTH, ZONE_NUMBER, ZONE_LETTER, LAT, LON, PANORAMA, TILE, HEADING = range(1, 10)
CAPTURED, NOTE, NUM_FIELDS = 13, 14, 16


def draft_from_names(config: SourceBase, paths: list[str] | pa.Array) -> Draft:
    """Fill position, heading, panorama and time from the base names of `paths`.

    A name needs the first two fields; the evaluation sets of this field carry no more than these for some
    photos. A name with fewer, or with text where a number belongs, is rejected as bad_name.
    """
    draft = Draft(config, paths)
    fields = split_names(draft.paths)
    bare = photos.basenames(draft.paths)
    too_few = pc.less(pc.count_substring(bare, "@"), NORTH).to_numpy(zero_copy_only=False)
    draft.mark(too_few, "bad_name", "the name has no fields between '@'")
    draft.parse("utm_east", fields[EAST], "bad_name").parse("utm_north", fields[NORTH], "bad_name")
    draft.parse("lat", fields[LAT], "bad_name").parse("lon", fields[LON], "bad_name")
    draft.parse("heading_deg", fields[HEADING], "bad_heading")
    zone = pc.if_else(
        pc.match_substring_regex(fields[ZONE_NUMBER], r"^\d{1,2}$"),
        pc.binary_join_element_wise(
            pc.utf8_lpad(fields[ZONE_NUMBER], 2, "0"), pc.utf8_upper(fields[ZONE_LETTER]), ""
        ),
        pa.scalar("", pa.string()),
    )
    has_letter = pc.match_substring_regex(zone, r"^\d{2}[C-HJ-NP-X]$")
    return draft.text(
        utm_zone=pc.if_else(has_letter, zone, ""),
        panorama_id=fields[PANORAMA],
        captured=photos.parse_captured(fields[CAPTURED]),
    )


def split_names(paths: pa.Array) -> list[pa.Array]:
    """The NUM_FIELDS text fields of each base name; fields that a name does not have are empty."""
    stems = pc.replace_substring_regex(photos.basenames(paths), r"\.[A-Za-z]+$", "")
    padded = pc.binary_join_element_wise(stems, pa.scalar("@" * NUM_FIELDS), "")
    parts = pc.split_pattern(padded, "@")
    return [pc.list_element(parts, index) for index in range(NUM_FIELDS)]
