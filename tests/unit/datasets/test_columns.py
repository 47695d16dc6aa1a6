"""The column functions under the listings, against slow twins."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from placeray.datasets import list_source, photos, text_lines
from placeray.datasets.photo_table import PhotoTable
from placeray.datasets.text_lines import read_lines

PATHS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), max_size=30), max_size=30)


@given(st.text(max_size=9), PATHS, st.integers(0, 5))
def test_ids_are_the_hash_of_set_and_path(name: str, paths: list[str], skip: int) -> None:
    ids = photos.image_ids(name, paths).slice(min(skip, len(paths)))
    expected = [xxhash.xxh3_128_hexdigest(f"{name}\n{path}".encode()) for path in paths[skip:]]
    assert photos.hex_text(ids).to_pylist() == expected


@given(PATHS)
def test_base_names(paths: list[str]) -> None:
    found = photos.basenames(pa.array(paths, pa.string())).to_pylist()
    assert found == [path.rsplit("/", 1)[-1] for path in paths]


@pytest.mark.parametrize("block_bytes", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("final", [True, False])
def test_lines_do_not_depend_on_where_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, end: str, final: bool
) -> None:
    lines = ["a", "", "  b c ", "\u00e4\u00f6\u00fc" * 9, "\t", "x" * 100, "last"]
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeff".encode() * (block_bytes > 2) + (end.join(lines) + end * final).encode())
    monkeypatch.setattr(text_lines, "_BLOCK_BYTES", block_bytes)
    found = [line for piece in read_lines(str(file)) for line in piece.to_pylist()]
    assert found == [line.strip() for line in lines if line.strip()]


def test_batches_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Duplicates are found across batches, cities keep their names, rows are sorted by path."""
    rng = np.random.default_rng(3)
    names, towns = rng.integers(0, 60, 100), rng.choice(["a", "b", ""], 100)
    lats = rng.choice(["55.7", "", "95"], 100, p=[0.8, 0.1, 0.1])
    rows = [f"{n}.jpg,{lat},13.2,{town}" for n, lat, town in zip(names, lats, towns, strict=True)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,lat,lon,town", *rows]))
    config = PhotoTable(
        kind="photo_table", name="x", root=str(tmp_path), split="train",
        columns={"lat": "lat", "lon": "lon", "city": "town"},
    )  # fmt: skip

    def listed(batch_rows: int) -> Any:
        monkeypatch.setattr(photos, "BATCH_ROWS", batch_rows)
        listing = list_source(config)
        return listing.read, listing.photos.to_pylist(), sorted(map(str, listing.rejects.to_pylist()))

    read, kept, rejects = listed(1000)
    assert (read, len(kept) + len(rejects)) == (100, 100)
    paths = [photo["path"] for photo in kept]
    assert paths == sorted(set(paths))
    assert {photo["city"] for photo in kept} == {"a", "b", "x"}
    assert sum("duplicate" in reject for reject in rejects) > 5
    assert listed(7) == listed(33) == (read, kept, rejects)
