"""What every source of photos has in common: its configuration, and what listing it gives."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Self

import pyarrow as pa
from pydantic import Field, model_validator

from placeray.config import Config

SplitName = Literal["train", "val", "test"]


class WithinRadius(Config):
    """A database photo shows the query's place when it was taken at most `radius_m` away, border included."""

    kind: Literal["radius"] = "radius"
    radius_m: float = Field(
        default=25.0, gt=0, description="metres between query and database photo, inclusive"
    )


class WithinFrames(Config):
    """A database photo shows the query's place when its frame number is at most `window` away."""

    kind: Literal["frames"] = "frames"
    window: int = Field(default=2, ge=0, description="frames between query and database photo, inclusive")


class ExactPair(Config):
    """A database photo shows the query's place when both have the same frame number."""

    kind: Literal["exact"] = "exact"


PositiveRule = Annotated[WithinRadius | WithinFrames | ExactPair, Field(discriminator="kind")]


class NamedPlaces(Config):
    """The source names its places itself (GSV-Cities)."""

    kind: Literal["named"] = "named"
    min_photos: int = Field(default=4, ge=1, description="a place with fewer photos is dropped and counted")


class CellPlaces(Config):
    """Places are cells of a UTM grid times heading bins, spread over groups that never hold two neighbours.

    The class rule of CosPlace with the numbers of the unified protocol of SelaVPR++ (Unified_dataset,
    README).
    """

    kind: Literal["cells"] = "cells"
    cell_m: int = Field(default=15, ge=1, description="M: side of a cell, metres")
    cell_stride: int = Field(default=3, ge=1, description="N: every N-th cell of a row shares a group")
    heading_bin_deg: int | None = Field(
        default=60,
        ge=1,
        le=360,
        description="alpha: width of a heading bin, degrees; null puts all headings together",
    )
    heading_stride: int = Field(default=2, ge=1, description="L: every L-th heading bin shares a group")
    min_photos: int = Field(default=4, ge=1, description="a place with fewer photos is dropped and counted")
    groups_kept: int | None = Field(
        default=None, ge=1, description="keep only the first so many groups that hold a place; null keeps all"
    )

    @model_validator(mode="after")
    def _bins_close_the_circle(self) -> Self:
        if self.heading_bin_deg is not None and 360 % (self.heading_bin_deg * self.heading_stride):
            raise ValueError(
                f"heading_bin_deg={self.heading_bin_deg} times heading_stride={self.heading_stride} does not "
                "divide 360: bins on both sides of north would share a group"
            )
        return self


class SourceBase(Config):
    """Fields of every source. Photos of the split `train` become places, those of `val` and `test` a map and
    queries.

    A source adds `kind` (its literal), `root` and what its layout needs.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._+-]*(/[a-z0-9][a-z0-9._+-]*)*$",
        description="data set name: part of every id and folder, so two sources never share one",
    )
    root: str = Field(min_length=1, description="folder or s3:// prefix; ${VARIABLE} and ~ are expanded")
    positive: PositiveRule | None = Field(
        default=WithinRadius(),
        description="which database photos are right answers for a query; null for a set without labels",
    )
    bytes_inside: bool | None = Field(
        default=None,
        description="images/ holds the image bytes; null = inside for val and test, by reference for train",
    )

    @property
    def split_name(self) -> SplitName:
        """train, val or test."""
        split: SplitName = getattr(self, "split", "train")
        return split

    @property
    def key(self) -> str:
        """`name/split`: how counts and positive rules name this source."""
        return f"{self.name}/{self.split_name}"

    @property
    def is_training(self) -> bool:
        """Whether its photos form places."""
        return self.split_name == "train"

    @property
    def keeps_bytes(self) -> bool:
        """Whether images/ holds the bytes of its photos."""
        return not self.is_training if self.bytes_inside is None else self.bytes_inside


class Listing(NamedTuple):
    """What a source holds, from its metadata alone: no pixel is read.

    photos:  columns of `photos.PHOTOS`, sorted by path (a batch of a source: in the order of its list).
    rejects: rejects/v1, one row per input that cannot be used.
    read:    rows and files met; always len(photos) + len(rejects).
    """

    photos: pa.Table
    rejects: pa.Table
    read: int


class Source(NamedTuple):
    """A line of DATASETS: the configuration class of a kind of source and the function that lists it."""

    config: type[SourceBase]
    list_photos: Callable[[Any], Listing]
