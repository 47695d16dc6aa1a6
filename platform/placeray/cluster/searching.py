"""Described photos in, answers out: the search job on Ray, one part per file of queries.

    <output>/<part>.parquet           [answers/v1], one for each file of queries
    <output>/work/<part>.report.json  what was done, with the key of map, queries and settings
    <output>/manifest.json            last; says which version of which map answered

An actor opens the map once (of a map in an object store: its machine's copy) and searches with as many threads as it
has CPUs: threads share the map's memory and processes on one machine share only its page cache, so one actor a machine
is best. The version is looked up once; a map that is updated meanwhile does not mix into the answers.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray

from placeray import storage
from placeray.cluster.parts import Part, Report, ensure_ray, run_parts
from placeray.contracts import table_manifest, validate_table
from placeray.datasets.writing import write_parquet
from placeray.errors import ConfigError, ContractError, DataError
from placeray.evaluation.run import load_calibration
from placeray.retrieval.manifest import check_model, fingerprint, read_map_manifest
from placeray.retrieval.many import CONTRACT, SearchConfig, answer_queries, without_position
from placeray.retrieval.place_map import PlaceMap

ROWS_PER_GROUP = 4096


class SearchReport(NamedTuple):
    """What a run did. `already_finished`: nothing was left to do."""

    output: str
    counts: Mapping[str, int]  # queries, answers, unplaced
    map_version: str
    queries_per_s: float | None  # of one worker while it searches; None when nothing was searched
    seconds: float
    already_finished: bool

    def line(self) -> str:
        """The line a person checks."""
        state = "already finished, nothing to do: " if self.already_finished else ""
        unplaced = self.counts["unplaced"]
        note = f" ({unplaced} without a position searched the whole map)" if unplaced else ""
        speed = "" if self.queries_per_s is None else f", {self.queries_per_s:.0f} queries/s per worker"
        return (
            f"search: {state}{self.counts['queries']} queries{note}, {self.counts['answers']} answers from "
            f"{self.map_version} of the map; wrote {self.output} in {self.seconds:.1f} s{speed}"
        )


class SearchWorker:
    """The worker of this job: one file of queries in, its answers on storage, its report out."""

    def __init__(
        self,
        place_map: str,
        version: str,
        output: str,
        config: dict[str, Any],
        calibration: str | None,
        num_threads: int,
    ) -> None:
        self._output, self._config = output, SearchConfig.model_validate(config)
        self._map = PlaceMap.open(place_map, version=version, num_threads=num_threads)
        self._calibration = None
        if calibration is not None:
            model_id = str(self._map.manifest["model"]["model_id"])
            self._calibration, _ = load_calibration(calibration, model_id)

    def __call__(self, part: Part) -> Report:
        queries = storage.read_table(part["uri"])
        began = time.perf_counter()
        answers = answer_queries(queries, self._map, self._config, self._calibration)
        seconds = time.perf_counter() - began
        validate_table(answers, CONTRACT)
        report: Report = {
            "key": part["key"],
            "answers": sum(len(found) for found in answers["answers"]),
            "unplaced": without_position(queries) if self._config.near_m is not None else 0,
            "seconds": seconds,
            "file": write_parquet(
                self._output, part["path"], answers, row_group_size=ROWS_PER_GROUP, compression="zstd"
            ),
        }
        storage.write_json(storage.report_uri(self._output, part), report)
        return report


def search_many(
    config: SearchConfig,
    queries: str,
    place_map: str,
    output: str,
    *,
    version: str | None = None,
    calibration: str | None = None,
    num_workers: int = 1,
    num_cpus: int | None = None,
) -> SearchReport:
    """Search a map with every photo of a finished descriptors folder.

    Args:
        version: of the map, the current one when None.
        calibration: report folder of an evaluation of this map.
        num_workers: Ray actors. `num_cpus`: CPUs and threads of one; those of the smallest machine when None.

    Raises:
        StorageError: the queries or the evaluation are not finished, or `output` cannot be written.
        MapError: no map, or the queries are of another model.
        DataError: there are no queries, or the evaluation is of another model.
        ConfigError: `output` holds answers to other queries, of another map or with other settings.
    """
    start = time.monotonic()
    queries, place_map, output = (storage.resolve(uri) for uri in (queries, place_map, output))
    asked = storage.read_manifest(queries)
    manifest = _checked_map(place_map, version, asked, queries)
    how = [fingerprint(manifest), config.model_dump(mode="json")]
    if calibration is not None:
        load_calibration(calibration, manifest["model"]["model_id"])
        how.append(storage.read_manifest(calibration))
    key = fingerprint([how, asked["fingerprint"]])
    if storage.has_manifest(output):
        return _finished(output, key, time.monotonic() - start)
    storage.check_can_write(storage.join(output, storage.MANIFEST))
    parts = _plan(queries, asked["files"], how)
    finished = {part["name"]: _finished_part(output, part) for part in parts}
    threads = num_cpus or (_cpus_of_a_machine() if None in finished.values() else 1)
    reports = run_parts(
        parts,
        SearchWorker,
        {
            "place_map": place_map,
            "version": manifest["version"],
            "output": output,
            "config": config.model_dump(mode="json"),
            "calibration": calibration and storage.resolve(calibration),
            "num_threads": threads,
        },
        describe="search",
        num_workers=num_workers,
        num_cpus=threads,
        done=lambda part: finished[part["name"]],
        unit="queries",
    )
    _commit(output, reports, key, config, asked, manifest)
    new = [report for part, report in zip(parts, reports, strict=True) if finished[part["name"]] is None]
    spent = sum(report["seconds"] for report in new)
    speed = sum(report["file"]["rows"] for report in new) / spent if spent else None
    return _report(output, speed, time.monotonic() - start, already_finished=False)


def _checked_map(
    place_map: str, version: str | None, asked: Mapping[str, Any], queries: str
) -> dict[str, Any]:
    """The manifest of the map, when the queries fit it; of a local one all files are there, workers copy the other."""
    if asked["contract"] != "descriptors/v1":
        raise DataError(f"{queries} holds {asked['contract']}, no described photos: run jobs/embed.py first")
    if storage.is_remote(place_map):
        manifest = read_map_manifest(place_map, version)
    else:
        with PlaceMap.open(place_map, version=version, num_threads=1) as opened:
            manifest = opened.manifest
    asked_of = {
        key: asked["properties"][key] for key in ("model_id", "code_bits", "descriptor_dim", "preprocessing")
    }
    check_model(manifest, f"the map {place_map}", **asked_of)
    return manifest


def _plan(queries: str, files: list[dict[str, Any]], how: list[Any]) -> list[Part]:
    """One part for each file that holds queries."""
    parts = [
        {
            "name": file["path"].removesuffix(".parquet"),
            "path": file["path"],
            "uri": storage.join(queries, file["path"]),
            "rows": file["rows"],
            "key": fingerprint([how, file["sha256"]]),
        }
        for file in files
        if file["rows"]
    ]
    if not parts:
        raise DataError(f"{queries} holds no described photos: there is nothing to search for")
    return parts


def _cpus_of_a_machine() -> int:
    """CPUs of the smallest machine of the cluster that has any, so that an actor fits everywhere."""
    ensure_ray()
    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min((count for count in found if count), default=1)


def _finished_part(output: str, part: Part) -> Report | None:
    """The report of a part that an earlier run finished in the same way and whose file is all there, else None."""
    uri = storage.report_uri(output, part)
    if not storage.exists(uri):
        return None
    report: Report = storage.read_json(uri)
    written = storage.join(output, part["path"])
    whole = storage.exists(written) and storage.size(written) == report["file"]["bytes"]
    return report if whole and report["key"] == part["key"] else None


def _commit(
    output: str,
    reports: list[Report],
    key: str,
    config: SearchConfig,
    asked: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:
    """Reconcile, then write the manifest."""
    files = [report["file"] for report in reports]
    counts = {
        "queries": sum(file["rows"] for file in files),
        "answers": sum(report["answers"] for report in reports),
        "unplaced": sum(report["unplaced"] for report in reports),
    }
    if counts["queries"] != asked["rows"]:
        raise ContractError(f"search: queries lost: read {asked['rows']}, answered {counts['queries']}")
    properties = {
        "map_version": manifest["version"],
        "map_build_key": manifest["build_key"],
        "model_id": manifest["model"]["model_id"],
        "queries_fingerprint": asked["fingerprint"],
    }
    made_by = {"job": "search", "key": key, "search": config.model_dump(mode="json"), "counts": counts}
    storage.commit_manifest(output, table_manifest(CONTRACT, files, made_by=made_by, properties=properties))


def _finished(output: str, key: str, seconds: float) -> SearchReport:
    if storage.read_manifest(output)["made_by"].get("key") != key:
        raise ConfigError(
            f"{output} holds answers to other queries, of another version of a map, or with other settings: "
            "choose another output, or remove the folder yourself"
        )
    return _report(output, None, seconds, already_finished=True)


def _report(output: str, speed: float | None, seconds: float, *, already_finished: bool) -> SearchReport:
    """Read back from what is published, so that a finished run and a repeated one say the same."""
    manifest = storage.read_manifest(output)
    version = str(manifest["properties"]["map_version"])
    return SearchReport(output, manifest["made_by"]["counts"], version, speed, seconds, already_finished)
