"""Raw layouts through the real normalize job: equal to the published scripts, whatever the workers and the order of
listings; then looked at, and opened as schemas/README.md says.
"""

import importlib.util
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from placeray import contracts, storage
from placeray.cluster.normalizing import NormalizeReport, normalize
from placeray.config import load_config
from placeray.datasets.planning import NormalizeConfig
from placeray.datasets.writing import write_parquet
from placeray.jobspecs.normalize import NormalizeJob
from placeray.toycity.city import draw_city
from placeray.toycity.config import ToyCityConfig

if TYPE_CHECKING:
    from tests.conftest import RunJob

SMALL = {
    "faults": True,
    "width_px": 32,
    "height_px": 32,
    "gsv_cities": {"cities": ["London"], "places_per_city": 11},
    "sf_xl": {"places": 7, "other_places": 2},
    "pitts30k_mat": {"places": 4, "held_out_places": 1, "groups": 1},
    "pitts30k": {"places": 5, "held_out_places": 2},
    "msls": {"places_per_city": 8, "places_per_val_city": 2},
    "evaluation": {"places": 3, "distractor_places": 2},
}
# Source -> (kind of layout, folder of the toy city, M, N, alpha, L, min photos).
TOY_SOURCES = {
    "gsv-cities": ("gsv_cities", "gsv_cities", (15, 3, 60, 2, 4)),
    "msls": ("msls", "msls", (15, 3, 60, 2, 4)),
    "pitts30k": ("at_layout", "pitts30k", (15, 3, 60, 2, 4)),
    "pitts30k-mat": ("pitts30k_mat", "pitts30k_mat", (15, 3, 60, 2, 4)),
    "sf-xl": ("sf_xl", "sf_xl", (10, 5, 60, 2, 4)),
}


@pytest.fixture(scope="module")
def raw(repository: Path) -> ModuleType:
    """The writers and twins of the unit tests."""
    file = repository / "tests/unit/datasets/raw_layouts.py"
    spec = importlib.util.spec_from_file_location("raw_layouts", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "city"
    draw_city(ToyCityConfig.model_validate(SMALL), str(root), num_workers=1)
    return root


@pytest.fixture(scope="module")
def config(city: Path, repository: Path) -> NormalizeConfig:
    """The toy config of the repository, reading the small city."""
    job = load_config(NormalizeJob, repository / "jobs/configs/normalize/toy.yaml")
    values = job.normalize.model_dump(mode="json")
    for source in values["sources"]:
        source["root"] = source["root"].replace("runs/toy/city", str(city))
    return NormalizeConfig.model_validate(values | {"photos_per_file": 40, "max_reject_share": 0.5})


@pytest.fixture(scope="module")
def normalized(ray_session: Any, config: NormalizeConfig, city: Path) -> NormalizeReport:
    return normalize(config, str(city.parent / "normalized"), num_workers=3, num_cpus=0.5)


def parquet_bytes(output: str) -> dict[str, bytes]:
    root = Path(output)
    folders = (root / name for name in ("images", "places", "rejects"))
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(root)): file.read_bytes() for file in files} | {
        "manifest.json": (root / "manifest.json").read_bytes()
    }


def read_all(output: str, folder: str, columns: list[str]) -> list[dict[str, Any]]:
    files = storage.read_manifest(f"{output}/{folder}")["files"]
    return [
        row
        for file in files
        for row in storage.read_table(f"{output}/{folder}/{file['path']}", columns).to_pylist()
    ]


def rows_with_places(output: str, dataset: str, root: Path) -> list[dict[str, Any]]:
    """Training rows of a source with the path below its root and the domain of their place."""
    domains = {row["place_id"]: row["domain"] for row in read_all(output, "places", ["place_id", "domain"])}
    columns = ["dataset", "split", "city", "place_id", "source_uri"]
    return [
        row | {"domain": domains.get(row["place_id"]), "path": os.path.relpath(row["source_uri"], root)}
        for row in read_all(output, "images", columns)
        if (row["dataset"], row["split"]) == (dataset, "train")
    ]


@pytest.fixture
def shuffled_folders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every folder is listed in a random order; the list tells which were."""
    shuffler, scandir, listed = random.Random(11), os.scandir, []

    class Shuffled:
        def __init__(self, path: Any = ".") -> None:
            with scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            shuffler.shuffle(entries)
            listed.append(str(path))
            self._entries = iter(entries)

        def __iter__(self) -> "Shuffled":
            return self

        def __next__(self) -> Any:
            return next(self._entries)

        def __enter__(self) -> "Shuffled":
            return self

        def __exit__(self, *error: object) -> None:
            self.close()

        def close(self) -> None:
            """Nothing is held open."""

    monkeypatch.setattr(os, "scandir", Shuffled)
    return listed


def test_one_worker_and_shuffled_folders_write_the_same_bytes(
    normalized: NormalizeReport, config: NormalizeConfig, tmp_path: Path, shuffled_folders: list[str]
) -> None:
    again = normalize(config, str(tmp_path / "again"), num_workers=1, num_cpus=1.0)
    assert again.counts == normalized.counts
    assert parquet_bytes(again.output) == parquet_bytes(normalized.output)
    assert len(shuffled_folders) > 5


@pytest.mark.parametrize("dataset", TOY_SOURCES)
def test_places_of_good_photos_equal_the_twins(
    dataset: str, normalized: NormalizeReport, city: Path, raw: ModuleType
) -> None:
    """After the photos were read: those that are gone or broken have left their places, too small ones are dropped."""
    kind, folder, rule = TOY_SOURCES[dataset]
    root = city / folder
    ours = raw.our_groups(kind, rows_with_places(normalized.output, dataset, root))
    twins = raw.twin_groups(kind, root, raw.Rule(*rule), raw.opens)
    if kind == "sf_xl":  # one group of several, see CellPlaces.groups_kept
        assert len(ours) == 1
        assert ours <= twins
    else:
        assert ours == twins
    counts = normalized.counts[f"{dataset}/train"]
    assert counts["places"] == sum(map(len, ours))
    assert counts["read"] == counts["kept"] + sum(counts["rejected"].values())


def test_a_look_at_the_toy_city(
    normalized: NormalizeReport, city: Path, run_job: "RunJob", tmp_path: Path
) -> None:
    values = (f"look.inputs=[{normalized.output}]", f"output={tmp_path / 'look'}")
    printed = run_job("look", "toy", *values)
    figures = json.loads((tmp_path / "look/overview.json").read_text())
    assert {source["name"]: source["kept"] for source in figures["sources"]} == {
        name: counts["kept"] for name, counts in normalized.counts.items()
    }
    for source in figures["sources"]:
        assert sum(source["roles"].values()) == sum(source["cities"].values()) == source["kept"]
        assert sum(int(size) * count for size, count in source["photos_per_place"].items()) == (
            source["kept"] - source["photos_without_place"] if source["split"] == "train" else 0
        )
    assert "No training photo lies within 25 m of an evaluation photo (20 pairs of sets)." in printed
    assert f"look: drew {tmp_path}/look/page.html: {normalized.total('kept')} photos of 9 sources" in printed
    assert (tmp_path / "look/page.html").read_text().count('class="strip"') == 5 * 3 + 4 * 3
    assert "look: already finished:" in run_job("look", "toy", *values)


def test_the_examples_of_the_schemas_run(
    normalized: NormalizeReport, repository: Path, tmp_path: Path
) -> None:
    for tool in ("duckdb", "geopandas"):
        pytest.importorskip(tool)
    rng = np.random.default_rng(0)
    schema = contracts.table_schema("descriptors/v1", {"descriptor": 8})
    described = pa.Table.from_pylist(
        [
            {
                "image_id": str(number),
                "source_uri": f"/raw/{number}.jpg",
                "code": rng.bytes(8),
                "descriptor": rng.normal(size=8).astype(np.float16),
            }
            for number in range(5)
        ],
        schema=schema,
    )
    folder = str(tmp_path / "descriptors")
    files = [write_parquet(folder, "0.parquet", described)]
    storage.commit_manifest(folder, contracts.table_manifest("descriptors/v1", files, made_by={}))
    text = (repository / "schemas/README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 8
    names: dict[str, Any] = {"root": normalized.output, "descriptors": folder}
    for example in examples:
        exec(compile(example, "schemas/README.md", "exec"), names)
    assert len(names["photos"]) == normalized.total("kept")
    assert len(names["refused"]) == normalized.total("rejected")
    described_contracts = set(re.findall(r"^\| `(\w+\.v\d+)`", text, re.MULTILINE))
    assert described_contracts == {file.stem for file in (repository / "schemas").glob("*.v*.json")}


@pytest.mark.real
@pytest.mark.slow
def test_real_photos_in_every_layout(
    ray_session: Any,
    real_data: Path,
    raw: ModuleType,
    tmp_path: Path,
    run_job: "RunJob",
    shuffled_folders: list[str],
) -> None:
    """Real JPEGs, coordinates and headings in each layout: nothing lost, places of the twins, the same bytes twice, and
    an evaluation set of the same streets that leaks wherever it should.
    """
    photos = raw.read_real_photos(real_data)
    written = {kind: writer(tmp_path / kind, photos) for kind, writer in raw.WRITERS.items()}
    rules = dict.fromkeys(written, (15, 3, 60, 2, 2)) | {"sf_xl": (10, 5, 60, 2, 2)}
    more = {
        "at_layout": {"split": "train", "heading_from": "tile"},
        "msls": {"cities": ["lund", "pittsburgh"]},
    }
    sources: list[dict[str, Any]] = []
    for kind, (m, n, alpha, bins, least) in rules.items():
        cells = {
            "cell_m": m,
            "cell_stride": n,
            "heading_bin_deg": alpha,
            "heading_stride": bins,
            "min_photos": least,
        }
        places = {"kind": "named", "min_photos": least} if kind == "gsv_cities" else cells
        name = {"pitts30k_mat": "pitts30k"}.get(kind, kind.replace("_", "-"))
        sources.append(
            {"kind": kind, "name": name, "root": str(tmp_path / kind), "places": places, **more.get(kind, {})}
        )
    campus = {"path": "path", "lat": "lat", "lon": "lon", "role": "split"}
    sources.append(
        {"kind": "photo_table", "name": "campus", "root": str(real_data / "cmu_campus"), "columns": campus}
    )
    config = NormalizeConfig.model_validate(
        {"sources": sources, "max_reject_share": 0.9, "photos_per_file": 100}
    )
    first = normalize(config, str(tmp_path / "first"), num_workers=3, num_cpus=0.5)
    second = normalize(config, str(tmp_path / "second"), num_workers=1, num_cpus=1.0)
    assert parquet_bytes(first.output) == parquet_bytes(second.output)
    assert shuffled_folders
    for kind, source in zip(rules, sources, strict=False):
        counts = first.counts[f"{source['name']}/train"]
        assert counts["read"] == len(written[kind]) == counts["kept"] + sum(counts["rejected"].values())
        ours = raw.our_groups(kind, rows_with_places(first.output, source["name"], tmp_path / kind))
        assert ours == raw.twin_groups(kind, tmp_path / kind, raw.Rule(*rules[kind]))
        assert counts["places"] == sum(map(len, ours)) > 8
    run_job("look", "toy", f"look.inputs=[{first.output}]", f"output={tmp_path / 'look'}")
    leaks = {
        leak["training"]: leak for leak in json.loads((tmp_path / "look/overview.json").read_text())["leaks"]
    }
    assert set(leaks) == {f"{source['name']}/train" for source in sources[:-1]}
    for kind, source in zip(rules, sources, strict=False):
        kept = Counter(
            row["source_uri"] for row in rows_with_places(first.output, source["name"], tmp_path / kind)
        )
        on_campus = [path for path, photo in written[kind].items() if photo.city == "pittsburgh"]
        assert leaks[f"{source['name']}/train"]["photos"] == sum(
            str(tmp_path / kind / path) in kept for path in on_campus
        )
