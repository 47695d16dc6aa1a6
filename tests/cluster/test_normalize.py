"""The normalize job on a real local Ray, on a toy city with the faults of real data sets planted in it."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from placeray import contracts, storage
from placeray.cluster.normalizing import NormalizeReport, normalize
from placeray.config import load_config
from placeray.datasets.planning import NormalizeConfig
from placeray.datasets.reading import list_domains
from placeray.errors import ConfigError, DataError, StorageError
from placeray.jobspecs.normalize import NormalizeJob
from placeray.toycity.city import draw_city
from placeray.toycity.config import ToyCityConfig

SMALL = {
    "faults": True,
    "width_px": 48,
    "height_px": 36,
    "gsv_cities": {"cities": ["London"], "places_per_city": 12},
    "sf_xl": {"places": 9, "other_places": 2},
    "pitts30k_mat": {"places": 6, "held_out_places": 2, "groups": 1},
    "pitts30k": {"places": 6, "held_out_places": 2},
    "msls": {"places_per_city": 9, "places_per_val_city": 3},
    "evaluation": {"places": 3, "distractor_places": 2},
}
# Parts of toycity.json that a source of the toy config reads.
PARTS = {
    "gsv-cities/train": ("gsv_cities", "London"),
    "sf-xl/train": ("sf_xl", "train"),
    "pitts30k-mat/train": ("pitts30k_mat", "train"),
    "pitts30k/train": ("pitts30k", "train"),
    "pitts30k/val": ("pitts30k", "val"),
    "pitts30k/test": ("pitts30k", "test"),
    "msls/train": ("msls", "helsinki"),
    "msls-val/official-740/val": ("msls", "cph"),
    "eval/test": ("eval", "test"),
}


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
    return NormalizeConfig.model_validate(values)


@pytest.fixture(scope="module")
def finished(ray_session: Any, config: NormalizeConfig, city: Path) -> NormalizeReport:
    return normalize(config, str(city.parent / "normalized"), num_workers=2, num_cpus=0.5)


def rows_of(report: NormalizeReport, folder: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    files = storage.read_manifest(f"{report.output}/{folder}")["files"]
    return [
        row
        for file in files
        for row in storage.read_table(f"{report.output}/{folder}/{file['path']}", columns).to_pylist()
    ]


def digests(output: str | Path) -> dict[str, str]:
    """Hashes of everything that was written."""
    root = Path(output)
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def test_counts_are_those_of_the_drawn_city(finished: NormalizeReport, city: Path) -> None:
    truth = json.loads((city / "toycity.json").read_text())["layouts"]
    assert set(finished.counts) == set(PARTS)
    for key, (layout, part) in PARTS.items():
        expected, found = truth[layout]["parts"][part], finished.counts[key]
        assert (found["read"], found["kept"], found["rejected"]) == (
            expected["read"], expected["kept"], expected["rejected"]
        ), key  # fmt: skip
        assert found["places"] == (expected["places"] if key.endswith("/train") else 0), key
    assert finished.total("read") == finished.total("kept") + finished.total("rejected")
    assert finished.total("rejected") > 15


def test_every_planted_fault_ends_with_its_reason_and_every_photo_somewhere(
    finished: NormalizeReport, city: Path
) -> None:
    rejects = rows_of(finished, "rejects")
    reasons: dict[str, list[str]] = {}
    for row in rejects:
        reasons.setdefault(row["source_uri"], []).append(row["reason"])
    images = rows_of(finished, "images", ["image_id", "source_uri", "dataset", "split"])
    kept = Counter(row["source_uri"] for row in images)
    faults = json.loads((city / "toycity.json").read_text())["faults"]
    for fault in faults:
        uri = str(city / fault["path"])
        if fault["expected"] == "kept":
            assert (kept[uri], reasons.get(uri)) == (1, None), fault
        else:
            assert fault["expected"] in reasons[uri], fault
    assert max(kept.values()) == 1
    assert len(images) == finished.total("kept")
    assert len(rejects) == finished.total("rejected")
    # Only the two .mat splits that the config does not read are in neither.
    unread = (
        {str(file) for file in city.rglob("*") if file.suffix.lower() == ".jpg"} - set(kept) - set(reasons)
    )
    truth = json.loads((city / "toycity.json").read_text())["layouts"]["pitts30k_mat"]["parts"]
    assert len(unread) == truth["val"]["read"] + truth["test"]["read"]
    assert all("pitts30k_mat" in uri for uri in unread)


def test_files_keep_their_contracts_and_manifests(finished: NormalizeReport) -> None:
    for folder, contract in (("images", "images/v1"), ("places", "places/v1"), ("rejects", "rejects/v1")):
        manifest = storage.read_manifest(f"{finished.output}/{folder}")
        contracts.validate_document(manifest, "table_manifest/v1")
        assert manifest["contract"] == contract
        for file in manifest["files"]:
            data = Path(f"{finished.output}/{folder}/{file['path']}").read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
            table = storage.read_table(f"{finished.output}/{folder}/{file['path']}")
            contracts.validate_table(table, contract)
            assert table.num_rows == file["rows"] > 0
    manifest = storage.read_manifest(finished.output)
    contracts.validate_document(manifest, "normalized/v1")
    assert manifest["positive_rules"]["eval/test"] == {"kind": "radius", "radius_m": 25.0}
    images = rows_of(finished, "images", ["split", "image"])
    assert {(row["split"] == "train", row["image"] is None) for row in images} == {
        (True, True),
        (False, False),
    }


def test_domains_are_cities_and_groups(finished: NormalizeReport) -> None:
    domains = list_domains(finished.output)
    assert sum(len(domain.place_ids) for domain in domains) == finished.total("places")
    names = {domain.name for domain in domains}
    assert "gsv-cities/London" in names
    assert sum(name.startswith("sf-xl/san-francisco/10n-") for name in names) == 1
    assert sum(name.startswith("msls/helsinki/35n-") for name in names) > 1
    assert all((domain.num_photos >= 4).all() for domain in domains)


def test_a_second_run_does_nothing_and_says_so(finished: NormalizeReport, config: NormalizeConfig) -> None:
    before = digests(finished.output)
    again = normalize(config, finished.output)
    assert again.already_finished
    assert again.counts == finished.counts
    assert "already finished" in again.line()
    assert digests(finished.output) == before


def test_another_config_into_the_same_output_is_refused(
    finished: NormalizeReport, config: NormalizeConfig
) -> None:
    values = config.model_dump(mode="json")
    values["sources"][3]["places"]["cell_m"] = 20
    with pytest.raises(
        ConfigError, match=r"made with another config \(they differ in sources.3.places.cell_m\)"
    ):
        normalize(NormalizeConfig.model_validate(values), finished.output)


def test_a_variable_that_points_elsewhere_is_another_config(
    ray_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifests keep the root as it is written; outputs of older versions have it so in config.json too."""
    for name, count in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        rows = [f"{number}.jpg,{number}" for number in range(count)]
        (tmp_path / name / "manifest.csv").write_text("\n".join(["path,frame", *rows]))
        for number in range(count):
            Image.new("RGB", (40, 40)).save(tmp_path / name / f"{number}.jpg")
    source = {"kind": "photo_table", "name": "own", "root": "${OWN_PHOTOS}", "columns": {"frame": "frame"}}
    config, output = NormalizeConfig.model_validate({"sources": [source]}), tmp_path / "out"
    monkeypatch.setenv("OWN_PHOTOS", str(tmp_path / "one"))
    assert normalize(config, str(output)).total("kept") == 1
    assert normalize(config, str(output)).already_finished
    assert storage.read_manifest(str(output))["sources"][0]["root"] == "${OWN_PHOTOS}"
    monkeypatch.setenv("OWN_PHOTOS", str(tmp_path / "two"))
    with pytest.raises(ConfigError, match=r"made with another config \(they differ in sources.0.root\)"):
        normalize(config, str(output))
    monkeypatch.setenv("OWN_PHOTOS", str(tmp_path / "one"))
    storage.write_json(str(output / "config.json"), config.model_dump(mode="json"))
    assert normalize(config, str(output)).already_finished


def test_a_photo_replaced_between_two_runs_is_read_again(ray_session: Any, tmp_path: Path) -> None:
    """All of the output is made of the photos that are there when it is finished."""
    raw, rows = tmp_path / "raw", ["path,frame"]
    raw.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(raw / f"{number}.png")
        rows.append(f"{number}.png,{number}")
    (raw / "manifest.csv").write_text("\n".join(rows))
    source = {"kind": "photo_table", "name": "own", "root": str(raw), "columns": {"frame": "frame"}}
    config = NormalizeConfig.model_validate({"sources": [source], "photos_per_file": 2})
    report = normalize(config, str(tmp_path / "out"), num_workers=1)
    for manifest in (tmp_path / "out").rglob("manifest.json"):
        manifest.unlink()
    kept = tmp_path / "out/images/own/test-database/00001.parquet"
    before = kept.stat().st_mtime_ns
    Image.new("RGB", (40, 40), (99, 0, 0)).save(raw / "0.png")
    report = normalize(config, str(tmp_path / "out"), num_workers=1)
    images = {row["source_uri"]: row["image"] for row in rows_of(report, "images", ["source_uri", "image"])}
    assert images == {str(file): file.read_bytes() for file in raw.glob("*.png")}
    assert kept.stat().st_mtime_ns == before


def test_an_interrupted_run_is_continued_to_the_same_bytes(
    ray_session: Any, finished: NormalizeReport, config: NormalizeConfig
) -> None:
    """Lost at the worst moments: the manifests, a file behind its report, a report, a file cut short."""
    before = digests(finished.output)
    output = Path(finished.output)
    for manifest in output.rglob("manifest.json"):
        manifest.unlink()
    images = sorted((output / "images").rglob("*.parquet"))
    places = sorted((output / "places").rglob("*.parquet"))
    images[0].unlink()
    places[1].write_bytes(places[1].read_bytes()[:100])
    sorted((output / "work").rglob("*.report.json"))[2].unlink()
    untouched = {file: file.stat().st_mtime_ns for file in images[3:]}
    report = normalize(config, finished.output, num_workers=1, num_cpus=1.0)
    assert not report.already_finished
    assert report.counts == finished.counts
    assert digests(finished.output) == before
    assert sum(file.stat().st_mtime_ns != before_ns for file, before_ns in untouched.items()) <= 2


def test_half_files_of_a_killed_run_go_first_of_all(tmp_path: Path) -> None:
    """Also in a run that fails at once: what a full disk holds of them is wanted for the others."""
    source = {"kind": "photo_table", "name": "own", "root": str(tmp_path / "none")}
    config = NormalizeConfig.model_validate({"sources": [source]})
    half, whole = (tmp_path / f"out/images/{name}" for name in ("1.parquet.tmp-0123456789ab", "0.parquet"))
    half.parent.mkdir(parents=True)
    half.touch()
    whole.touch()
    with pytest.raises(StorageError, match="no such file"):
        normalize(config, str(tmp_path / "out"))
    assert whole.exists()
    assert not half.exists()


def test_too_many_faults_stop_the_job_and_keep_the_rejects(
    ray_session: Any, config: NormalizeConfig, tmp_path: Path
) -> None:
    strict = config.model_copy(update={"sources": config.sources[:1], "max_reject_share": 0.01})
    with pytest.raises(
        DataError, match=r"gsv-cities/train: 3 of \d+ inputs are faulty .*max_reject_share=0.01"
    ):
        normalize(strict, str(tmp_path / "out"))
    (file,) = (tmp_path / "out/rejects").rglob("*.parquet")
    assert storage.read_table(str(file)).num_rows == 3
    assert not list((tmp_path / "out").rglob("manifest.json"))
