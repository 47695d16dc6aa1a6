"""Data sets: one module per source of photos, the places they form, and what training reads of them.

`DATASETS` names every kind of source with its configuration class and the function that lists it. A new
source is a module with these two, and a line in `DATASETS` and `SourceConfig`.
"""

from typing import Annotated

from pydantic import Field

from placeray.datasets import at_layout, gsv_cities, msls, photo_folder, photo_table, pitts30k_mat, sf_xl
from placeray.datasets.source import Listing, Source, SourceBase

DATASETS: dict[str, Source] = {
    "gsv_cities": Source(gsv_cities.GsvCities, gsv_cities.list_photos),
    "sf_xl": Source(sf_xl.SfXl, sf_xl.list_photos),
    "pitts30k_mat": Source(pitts30k_mat.PittsMat, pitts30k_mat.list_photos),
    "at_layout": Source(at_layout.AtLayout, at_layout.list_photos),
    "msls": Source(msls.Msls, msls.list_photos),
    "photo_table": Source(photo_table.PhotoTable, photo_table.list_photos),
    "photo_folder": Source(photo_folder.PhotoFolder, photo_folder.list_photos),
}

SourceConfig = Annotated[
    gsv_cities.GsvCities
    | sf_xl.SfXl
    | pitts30k_mat.PittsMat
    | at_layout.AtLayout
    | msls.Msls
    | photo_table.PhotoTable
    | photo_folder.PhotoFolder,
    Field(discriminator="kind"),
]


def list_source(config: SourceBase) -> Listing:
    """All photos of a source and the inputs that cannot be used, from metadata alone."""
    return DATASETS[config.kind].list_photos(config)  # type: ignore[attr-defined]
