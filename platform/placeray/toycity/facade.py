"""The colour of a wall: brickwork, windows, doors, shops and signs at world coordinates.

Shapes: `h` rows, `w` columns of the part of the photo a wall layer covers. Values per column are (w,), per
pixel (h, w), colours planar (3, h, w). Edges are softened by the size of a pixel on the wall, so that far
walls fade to their mean instead of flickering.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placeray.toycity.hashing import Floats, hash_cells, second_unit, unit
from placeray.toycity.street import NUM_PANELS


@dataclass(frozen=True)
class Lamps:
    """What shines by itself: how dark it is (0 day .. 1 night) and which windows are lit this time."""

    night: float
    seed: int


@dataclass(frozen=True)
class Patch:
    """The part of a photo one layer of walls covers."""

    house: NDArray[np.void]  # (w,) record of the column's building
    along: Floats  # (w,) metres from the left end of the face
    width: Floats  # (w,) metres
    per_column: Floats  # (w,) metres of wall per column
    per_row: Floats  # (w,) metres of wall per row
    front: NDArray[np.bool_]  # (w,)
    z: Floats  # (h, w) metres above ground
    below_top: Floats  # (h, w) metres under the roof line


def paint_facade(patch: Patch, lamps: Lamps) -> tuple[Floats, Floats]:
    """The colour of the wall itself and the light it sends out, both (3, h, w)."""
    house = patch.house
    colour = _planes(house["wall"]) * _texture(patch)
    glow = np.zeros_like(colour)
    storey, above_floor = _storeys(patch)
    _paint_trim(colour, patch, above_floor)
    _paint_windows(colour, glow, patch, storey, above_floor, lamps)
    if np.any(house["shop"] & patch.front):
        _paint_shop(colour, glow, patch, lamps)
    _paint_roof(colour, patch)
    for number in range(NUM_PANELS):
        _paint_panel(colour, glow, patch, number, lamps)
    return colour, glow


def _planes(rgb: Floats) -> Floats:
    """(w, 3) colours of columns as (3, 1, w)."""
    return np.ascontiguousarray(rgb.T)[:, None, :]


def _soft(distance: Floats, pixel: Floats) -> Floats:
    """Share of a pixel that lies inside an edge; `distance` is positive inside, both in metres."""
    share = distance / pixel
    share += np.float32(0.5)
    return np.clip(share, 0, 1, out=share)


def _blend(colour: Floats, share: Floats, other: Any) -> None:
    """Cover `share` (h, w) or (w,) of every pixel with another colour, in place."""
    change = other - colour
    change *= share
    colour += change


def _texture(patch: Patch) -> Floats:
    """Bricks, plates or boards: a tone per cell and dark joints, fading where cells are below pixel size."""
    house = patch.house
    row = patch.z / house["texture_z"]
    course = np.floor(row)
    column = patch.along / house["texture_u"] + course * house["texture_shift"]
    cell = np.floor(column)
    tone = unit(hash_cells(cell.astype(np.int32), course.astype(np.int32), house["key"]))
    visible = np.clip(
        1.6 - np.maximum(patch.per_row / house["texture_z"], patch.per_column / house["texture_u"]), 0, 1
    )
    tone -= np.float32(0.5)
    tone *= house["texture"] * visible
    row -= course
    tone -= (row < 0.16) * (house["joint"] * visible)
    tone += 1
    return tone


def _storeys(patch: Patch) -> tuple[Floats, Floats]:
    """Storey number (h, w), -1 for the ground floor, and metres above that storey's floor."""
    house = patch.house
    rise = patch.z - house["ground_m"]
    storey = np.floor(rise / house["storey_m"])
    above = rise - storey * house["storey_m"]
    return storey, above


def _paint_trim(colour: Floats, patch: Patch, above_floor: Floats) -> None:
    """Bands at each floor, pilasters between bays, the cornice under the roof."""
    house = patch.house
    upper = patch.z > house["ground_m"] - 0.2
    band = _soft(np.float32(0.35) - above_floor, patch.per_row) * upper * house["band"]
    bay = patch.along / house["bay_m"]
    pillar = np.abs(bay - np.round(bay)) * house["bay_m"]
    band += _soft(np.float32(0.22) - pillar, patch.per_column) * house["pilaster"]
    band += 1
    colour *= band
    cornice = _soft(house["cornice_m"] - patch.below_top, patch.per_row) * (house["cornice_m"] > 0)
    _blend(colour, cornice, _planes(house["trim"]))


def _paint_windows(
    colour: Floats, glow: Floats, patch: Patch, storey: Floats, above_floor: Floats, lamps: Lamps
) -> None:
    """The window grid. Which bays are blank and which windows have light curtains belongs to the house."""
    house, column, row = patch.house, patch.per_column, patch.per_row
    bays = np.floor((patch.width - 0.6) / house["bay_m"])
    position = (patch.along - (patch.width - bays * house["bay_m"]) / 2) / house["bay_m"]
    bay = np.floor(position)
    off = np.abs(position - bay - 0.5) * house["bay_m"]
    open_bay = (bay >= 0) & (bay < bays) & (patch.front | ~house["blank_sides"])
    half = house["window_w"] / 2
    arch = house["arch_m"] * (1 - np.sqrt(np.clip(1 - (off / half) ** 2, 0, 1)))
    top = house["sill_m"] + house["window_h"] - arch

    dice = hash_cells(bay.astype(np.int32), storey.astype(np.int32), house["key"])
    there = (unit(dice) >= house["absent"]) & (storey >= 0) & (patch.below_top > house["cornice_m"] + 0.2)
    there &= open_bay
    inside = np.minimum(above_floor - house["sill_m"], top - above_floor)
    framed = _soft(inside + house["frame_m"], row) * _soft(half + house["frame_m"] - off, column) * there
    glazed = _soft(inside, row) * _soft(half - off, column) * there
    bars = np.where(house["mullions"] == 2, np.abs(off - half / 3), off)
    bars = _soft(0.06 - bars, column) * (house["mullions"] > 0)
    transom = above_floor - house["sill_m"] - house["transom"] * house["window_h"]
    glazed *= 1 - np.maximum(bars, _soft(np.float32(0.06) - np.abs(transom), row))

    _blend(colour, framed, _planes(house["trim"]))
    curtain = (second_unit(dice) < house["curtained"]) * np.float32(0.75)
    pane = _planes(house["glass"]) + curtain * _planes(house["curtain"] - house["glass"])
    _blend(colour, glazed, pane)
    if lamps.night > 0:
        lit = unit(hash_cells(dice.view(np.int32), lamps.seed)) < 0.45 * lamps.night
        shine = glazed * lit * (lamps.night * (0.35 + 0.5 * curtain))
        glow += shine * np.array([1.0, 0.8, 0.5], dtype=np.float32)[:, None, None]
    rail = _soft(np.float32(0.9) - above_floor, row) * (storey >= 0) * house["balcony"] * open_bay
    colour *= 1 - rail * (1 - 0.5 * glazed)


def _paint_shop(colour: Floats, glow: Floats, patch: Patch, lamps: Lamps) -> None:
    """Shop windows along the ground floor."""
    house = patch.house
    bay = patch.along / (house["bay_m"] * 1.3)
    post = np.abs(bay - np.round(bay)) * house["bay_m"] * 1.3
    across = _soft(post - 0.15, patch.per_column) * (house["shop"] & patch.front)
    share = _soft(np.minimum(patch.z - 0.45, house["ground_m"] - 1.3 - patch.z), patch.per_row) * across
    goods = unit(
        hash_cells(
            np.floor(patch.along / 0.7).astype(np.int32),
            np.floor(patch.z / 0.9).astype(np.int32),
            house["key"],
        )
    )
    pane = _planes(house["glass"]) + (goods * goods * 0.5) * _planes(house["curtain"])
    _blend(colour, share, pane)
    if lamps.night > 0:
        is_open = unit(hash_cells(house["key"], lamps.seed)) < 0.6
        glow += (share * (is_open * (0.6 * lamps.night))) * pane * 1.6


def _paint_roof(colour: Floats, patch: Patch) -> None:
    """Tiles above the eaves of a pitched roof."""
    house = patch.house
    eaves = _soft(patch.z - house["height"], patch.per_row) * (house["roof_m"] > 0)
    if eaves.any():
        _blend(colour, eaves, _planes(house["roof_colour"]))


def _paint_panel(colour: Floats, glow: Floats, patch: Patch, number: int, lamps: Lamps) -> None:
    """One sign, mural or door; only its own columns and rows are touched."""
    panel = patch.house["panels"][:, number]
    across = _soft(np.minimum(patch.along - panel["u0"], panel["u1"] - patch.along), patch.per_column)
    columns = np.flatnonzero((across > 0) & patch.front & (panel["u1"] > 0))
    if not columns.size:
        return
    panel, z = panel[columns], patch.z[:, columns]
    share = _soft(np.minimum(z - panel["z0"], panel["z1"] - z), patch.per_row[columns]) * across[columns]
    rows = np.flatnonzero(share.any(axis=1))
    if not rows.size:
        return
    window = slice(rows[0], rows[-1] + 1)
    share, z = share[window], z[window]
    cell_u = np.floor((patch.along[columns] - panel["u0"]) / panel["cell_u"]).astype(np.int32)
    cell_z = np.floor((z - panel["z0"]) / panel["cell_z"]).astype(np.int32)
    dice = unit(hash_cells(cell_u, cell_z, patch.house["key"][columns], number))
    gap = panel["letters"] & (cell_u % 4 == 3) | (panel["z1"] - z < panel["cell_z"] * 0.6) & panel["letters"]
    inked = (dice < 0.5) & ~gap
    # A pattern finer than a pixel is seen as its mean.
    visible = np.clip(
        1.7
        - np.maximum(patch.per_row[columns] / panel["cell_z"], patch.per_column[columns] / panel["cell_u"]),
        0,
        1,
    )
    ink = np.float32(0.4) + visible * (inked - np.float32(0.4))
    face = _planes(panel["paper"]) + ink * _planes(panel["ink"] - panel["paper"])
    part = colour[:, window, columns]
    _blend(part, share, face)
    colour[:, window, columns] = part
    if lamps.night > 0:
        shine = face * (share * (panel["glow"] * (0.55 * lamps.night)))
        glow[:, window, columns] = np.where(share > 0.5, shine, glow[:, window, columns])
