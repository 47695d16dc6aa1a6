"""images/v1 opens as points in geopandas and DuckDB; both are development tools, absent in a core install."""

from pathlib import Path
from typing import Any

import pytest

from placeray.datasets.planning import NormalizeConfig, plan_source, write_plan
from placeray.datasets.writing import write_part

# Both sides of a zone border, both hemispheres, both sides of the antimeridian.
POSITIONS = [(55.7, 13.2), (-33.9, 18.4), (10.0, 179.9999), (10.0, -179.9999), (55.7, 11.99999)]


@pytest.fixture
def images(tmp_path: Path, write: Any, jpeg: Any) -> Path:
    """Files of two photos each; the last photo has a frame number and no position."""
    rows = [f"{number}.jpg,{lat},{lon}," for number, (lat, lon) in enumerate(POSITIONS)]
    write("manifest.csv", "\n".join(["path,lat,lon,frame", *rows, "5.jpg,,,7"]))
    for number in range(6):
        write(f"{number}.jpg", jpeg(number))
    columns = {"lat": "lat", "lon": "lon", "frame": "frame"}
    source = {"kind": "photo_table", "name": "own", "root": str(tmp_path), "columns": columns}
    config = NormalizeConfig.model_validate({"sources": [source], "photos_per_file": 2})
    for part in write_plan(plan_source(config.sources[0], config), config, str(tmp_path / "out")):
        write_part(part, str(tmp_path / "out"), config.photos)
    return tmp_path / "out" / "images"


def test_geopandas_reads_points_of_wgs84(images: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    files = sorted(images.rglob("*.parquet"))
    assert len(files) == 3
    frame = geopandas.read_parquet(files).sort_values("source_uri", ignore_index=True)
    assert frame.crs == "OGC:CRS84"
    assert [(point.y, point.x) for point in frame.geometry[:5]] == POSITIONS
    assert frame.geometry.isna().tolist() == [False] * 5 + [True]
    north_east = geopandas.read_parquet(files, filters=[("lon", ">", 0), ("lat", ">", 50)])
    assert len(north_east) == 2


def test_duckdb_reads_points_without_an_extension(images: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    table = f"read_parquet('{images}/**/*.parquet')"
    described = {row[0]: row[1] for row in duckdb.sql(f"DESCRIBE SELECT * FROM {table}").fetchall()}
    assert described["geometry"].startswith("GEOMETRY")
    rows = duckdb.sql(f"SELECT lon, lat, ST_AsText(geometry) FROM {table} ORDER BY source_uri").fetchall()
    assert [row[2] for row in rows] == [f"POINT ({row[0]:.15g} {row[1]:.15g})" for row in rows[:5]] + [None]
