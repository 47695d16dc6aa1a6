"""SF-XL: crops of San Francisco panoramas with '@' names, in the trees `processed`, `raw` and `small`.

Sources: the SF-XL README; `gmberton/CosPlace:datasets/dataset_utils.py` for the lists of paths beside the
folders (`train_images_paths.txt` beside `train/`): with 41 million photos a list is read in seconds, a folder
walk in hours.
"""

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from placeray import storage
from placeray.datasets import at_names, photos
from placeray.datasets.source import CellPlaces, Listing, SourceBase, SplitName
from placeray.datasets.text_lines import read_lines
from placeray.errors import DataError


class SfXl(SourceBase):
    """One split of one tree of SF-XL. Its heading is that of the leftmost column of a crop."""

    kind: Literal["sf_xl"]
    name: str = "sf-xl"
    split: SplitName = "train"
    tree: Literal["processed", "raw", "small"] = "processed"
    queries: str = Field(
        default="queries", description="folder of the queries; of the test set one of queries_v1 ..."
    )
    use_lists: bool = Field(
        default=True, description="read <folder>_images_paths.txt instead of walking the folder"
    )
    places: CellPlaces = Field(
        default=CellPlaces(cell_m=10, cell_stride=5, groups_kept=1),
        description="unified protocol: one of 50 groups",
    )


def list_photos(config: SfXl) -> Listing:
    """The photos of `train` (raw: `train/database`), or database and queries of `val` and `test`."""
    base = f"{config.tree}/{config.split}"
    if config.is_training:
        folders = [("train", f"{base}/database" if config.tree == "raw" else base)]
    else:
        folders = [("database", f"{base}/database"), ("query", f"{base}/{config.queries}")]
    return photos.join_listings(
        config, (part for role, folder in folders for part in _list_folder(config, role, folder))
    )


def _list_folder(config: SfXl, role: str, folder: str) -> Iterator[Listing]:
    full = storage.join(config.root, folder)
    list_file = f"{full}_images_paths.txt"
    from_list = config.use_lists and storage.exists(list_file)
    found = False
    for names in read_lines(list_file) if from_list else photos.walk_images(full):
        found = True
        names = names.take(
            pc.sort_indices(names)
        )  # now, in the cache: sorting all at once jumps through gigabytes
        paths = pc.binary_join_element_wise(pa.scalar(folder), names, "/")
        yield at_names.draft_from_names(config, paths).text(role=role, city="san-francisco").finish()
    if not found:
        where = f"in {storage.resolve(list_file)}" if from_list else f"below {storage.resolve(full)}"
        raise DataError(f"{config.key}: no photo {where}")
