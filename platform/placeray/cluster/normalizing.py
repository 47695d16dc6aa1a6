"""Raw data sets in, places/v1, images/v1 and rejects/v1 out: the normalize job on Ray Data.

The driver plans from metadata (`datasets.planning`), workers write the parts (`datasets.writing`), the
manifests come last. Every input row or file ends in images/ or in rejects/: read = kept + rejected, or the
job fails.
"""

import sys
import time
from typing import Any, NamedTuple

from placeray import contracts, storage
from placeray.cluster.parts import Part, Report, run_parts
from placeray.datasets.photo_bytes import PhotoStorage
from placeray.datasets.planning import (
    NormalizeConfig,
    SourcePlan,
    check_share,
    plan_file,
    plan_source,
    write_plan,
)
from placeray.datasets.source import SourceBase
from placeray.datasets.writing import finished_report, write_part, write_rejects
from placeray.errors import ConfigError, ContractError

_FOLDERS = {"images": "images/v1", "places": "places/v1", "rejects": "rejects/v1"}


class NormalizeReport(NamedTuple):
    """What a run did. `counts`: per source, as in the manifest. `already_finished`: nothing was left to
    do.
    """

    output: str
    counts: dict[str, dict[str, Any]]
    seconds: float
    already_finished: bool

    def total(self, name: str) -> int:
        """Sum of one count over all sources; for `rejected` over all reasons."""
        values = [counts[name] for counts in self.counts.values()]
        return sum(sum(value.values()) if isinstance(value, dict) else value for value in values)

    def line(self) -> str:
        """The line a person checks."""
        state = "already finished, nothing to do: " if self.already_finished else ""
        return (
            f"normalize: {state}read {self.total('read')}, kept {self.total('kept')}, "
            f"rejected {self.total('rejected')}; wrote {self.total('places')} places "
            f"({self.total('places_dropped_small')} too small) to {self.output} in {self.seconds:.1f} s"
        )


class PartWriter:
    """The worker of this job: one planned part in, its files on storage, its report out."""

    def __init__(self, output: str, photos: dict[str, Any]) -> None:
        self._output = output
        self._photos = PhotoStorage.model_validate(photos)

    def __call__(self, part: Part) -> Report:
        return write_part(part, self._output, self._photos)


def normalize(
    config: NormalizeConfig, output: str, *, num_workers: int = 2, num_cpus: float = 1.0
) -> NormalizeReport:
    """Write the normalized form of the configured sources to `output`.

    A finished output of the same config is left alone; an unfinished one is continued, by one run at a time.

    Raises:
        ConfigError: `output` belongs to another config.
        DataError: a source is missing, empty, or has more faults than `max_reject_share` allows.
    """
    start = time.monotonic()
    output = storage.resolve(output)
    _claim(config, output)
    if storage.has_manifest(output):
        counts = storage.read_manifest(output)["counts"]
        return NormalizeReport(output, counts, time.monotonic() - start, already_finished=True)
    storage.remove_litter(output)  # of a killed run, before more is written: the disk may be full of it
    files: dict[str, list[dict[str, Any]]] = {folder: [] for folder in _FOLDERS}
    counts, parts = {}, []
    for source in config.sources:
        plan = plan_source(source, config)
        counts[source.key] = plan.counts
        files["rejects"] += _write_listing_rejects(plan, output)
        check_share(source.key, plan.counts, config, storage.join(output, "rejects"))
        planned = write_plan(plan, config, output)
        parts += planned
        print(
            f"normalize: {source.key}: {plan.counts['read']} rows listed, {len(planned)} parts planned",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    there = storage.file_sizes(output)
    reports = run_parts(
        parts,
        PartWriter,
        {"output": output, "photos": config.photos.model_dump(mode="json")},
        describe="normalize",
        num_workers=num_workers,
        num_cpus=num_cpus,
        done=lambda part: finished_report(output, part, there),
        unit="photos",
    )
    for report in reports:
        _add_counts(counts[report["source"]], report["counts"])
        for folder, written in report["files"].items():
            files[folder] += written
    for source in config.sources:
        _reconcile(source, counts[source.key])
        check_share(source.key, counts[source.key], config, storage.join(output, "rejects"))
    _tidy(config, output)
    _commit(config, output, files, counts)
    return NormalizeReport(output, counts, time.monotonic() - start, already_finished=False)


def _tidy(config: NormalizeConfig, output: str) -> None:
    """Remove the plans, which a finished output has no use for, and what killed writers left."""
    prefixes = tuple(plan_file("", source, 0).strip("/").removesuffix("00000") for source in config.sources)
    for path in storage.file_sizes(output):
        if path.startswith(prefixes):
            storage.remove(storage.join(output, path))
    storage.remove_litter(output)


def _claim(config: NormalizeConfig, output: str) -> None:
    """Bind an output folder to its config, with the roots in full, by the first file written there."""
    mine, uri = _with_full_roots(config.model_dump(mode="json")), storage.join(output, "config.json")
    if not storage.exists(uri):
        storage.write_json(uri, mine)
        return
    theirs = _with_full_roots(storage.read_json(uri))  # an older version saved them as written
    if theirs != mine:
        raise ConfigError(
            f"{output} was made with another config (they differ in {_first_difference(theirs, mine)}): "
            "choose another output, or remove the folder yourself"
        )


def _with_full_roots(values: Any) -> Any:
    """The values of a config with `${VARIABLE}`, `~` and relative paths in the roots resolved: what it reads here and
    now. Manifests keep the roots as written.
    """
    if not isinstance(values, dict) or not isinstance(values.get("sources"), list):
        return values
    sources = [
        {**source, "root": storage.resolve(source["root"])} if "root" in source else source
        for source in values["sources"]
    ]
    return {**values, "sources": sources}


def _first_difference(theirs: Any, mine: Any, path: str = "") -> str:
    """Dotted path of the first value in which two JSON documents differ."""
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        theirs, mine = dict(enumerate(theirs)), dict(enumerate(mine))
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in list(mine) + [key for key in theirs if key not in mine]:
            if theirs.get(key) != mine.get(key):
                return _first_difference(
                    theirs.get(key), mine.get(key), f"{path}.{key}" if path else str(key)
                )
    return path


def _write_listing_rejects(plan: SourcePlan, output: str) -> list[dict[str, Any]]:
    if not plan.rejects.num_rows:
        return []
    return [write_rejects(output, f"listing/{plan.source.key}.parquet", plan.rejects)]


def _add_counts(total: dict[str, Any], part: dict[str, Any]) -> None:
    for name in ("kept", "in_places", "places", "places_dropped_small"):
        total[name] += part[name]
    for reason, count in part["rejected"].items():
        total["rejected"][reason] = total["rejected"].get(reason, 0) + count


def _reconcile(source: SourceBase, counts: dict[str, Any]) -> None:
    counts["photos_without_place"] = counts["kept"] - counts["in_places"] if source.is_training else 0
    rejected = sum(counts["rejected"].values())
    if counts["read"] != counts["kept"] + rejected:
        raise ContractError(
            f"{source.key}: inputs lost: read {counts['read']}, kept {counts['kept']}, rejected {rejected}"
        )


def _commit(
    config: NormalizeConfig,
    output: str,
    files: dict[str, list[dict[str, Any]]],
    counts: dict[str, dict[str, Any]],
) -> None:
    """Manifests of the three folders, then the one that makes the whole set readable."""
    rules = {
        source.key: source.positive.model_dump() for source in config.sources if source.positive is not None
    }
    made_by = {"job": "normalize", "config": config.model_dump(mode="json"), "counts": counts}
    for folder, contract in _FOLDERS.items():
        manifest = contracts.table_manifest(
            contract, files[folder], made_by=made_by, properties={"positive_rules": rules}
        )
        storage.commit_manifest(storage.join(output, folder), manifest)
    document = {
        "contract": "normalized/v1",
        "counts": counts,
        "sources": [source.model_dump(mode="json") for source in config.sources],
        "positive_rules": rules,
    }
    contracts.validate_document(document, "normalized/v1")
    storage.commit_manifest(output, document)
