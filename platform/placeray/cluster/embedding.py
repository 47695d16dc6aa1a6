"""Photos in, descriptors out: the embed job on Ray.

    <output>/<part>.parquet        [descriptors/v1], one for each file of images/v1 that has selected photos
    <output>/rejects/<part>.parquet   [rejects/v1], photos that could not be read or decoded
    <output>/work/<part>.report.json  what was done, with the key of model and input: a part with it is finished
    <output>/manifest.json         last; says which model made the descriptors

Each actor loads the checkpoint once. A finished output of the same photos and model is left alone, an unfinished
one is continued file by file.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from placeray import storage
from placeray.cluster.describing import describe_file, selected_rows, write_descriptors
from placeray.cluster.parts import Part, Report, run_parts
from placeray.contracts import table_manifest
from placeray.datasets.writing import write_rejects
from placeray.errors import ConfigError, ContractError, DataError
from placeray.jobspecs.embed import PhotoSelection
from placeray.model.checkpoint import LoadedModel, load_checkpoint
from placeray.model.describe import EmbedConfig
from placeray.model.precision import compiled
from placeray.model.preprocess import PreprocessConfig


class Workers(NamedTuple):
    """How many actors, and what each of them gets."""

    num_workers: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    decode_threads: int = 2


class EmbedReport(NamedTuple):
    """What a run did. `already_finished`: nothing was left to do."""

    output: str
    read: int
    kept: int
    rejected: dict[str, int]
    made: str  # what a descriptor is, and of which model
    seconds: float
    already_finished: bool

    def line(self) -> str:
        """The line a person checks."""
        state = "already finished, nothing to do: " if self.already_finished else ""
        why = f" ({', '.join(f'{count} {reason}' for reason, count in self.rejected.items())})"
        return (
            f"embed: {state}read {self.read}, kept {self.kept}, rejected {sum(self.rejected.values())}"
            f"{why if self.rejected else ''}; wrote {self.made} to {self.output} in {self.seconds:.1f} s"
        )


class EmbedWorker:
    """The worker of this job: one images/v1 file in, its descriptors and rejects on storage, its report out."""

    def __init__(
        self,
        checkpoint: str,
        output: str,
        select: dict[str, Any],
        config: dict[str, Any],
        preprocess: dict[str, Any],
        torch_threads: int,
        decode_threads: int,
        use_gpu: bool,
    ) -> None:
        torch.set_num_threads(torch_threads)
        self._output = output
        self._select = PhotoSelection.model_validate(select)
        self._config = EmbedConfig.model_validate(config)
        self._preprocess = PreprocessConfig.model_validate(preprocess)
        self._pool = ThreadPoolExecutor(decode_threads, "placeray-decode")
        model = load_checkpoint(checkpoint).model.to("cuda" if use_gpu else "cpu")
        self._model = compiled(model, self._config.compile)

    def __call__(self, part: Part) -> Report:
        described = describe_file(
            part["uri"], self._select, self._model, self._preprocess, self._config, self._pool
        )
        report: Report = {
            "key": part["key"],
            "read": part["rows"],
            "rejected": described.reasons,
            "descriptors": write_descriptors(self._output, part["path"], described.descriptors),
            "rejects": None,
        }
        if described.rejects.num_rows:
            report["rejects"] = write_rejects(self._output, part["path"], described.rejects)
        storage.write_json(storage.report_uri(self._output, part), report)
        return report


def embed(
    config: EmbedConfig,
    normalized: str,
    checkpoint: str,
    output: str,
    *,
    select: PhotoSelection = PhotoSelection(),  # noqa: B008  (frozen)
    preprocess: PreprocessConfig | None = None,
    workers: Workers = Workers(),  # noqa: B008  (immutable)
    registered: Mapping[str, str] | None = None,
) -> EmbedReport:
    """Describe the selected photos of a normalized data set.

    Args:
        normalized: folder that the normalize job wrote.
        checkpoint: folder, or a file of published weights.
        preprocess: None takes the checkpoint's own.
        registered: name and version of the registered model that the checkpoint is; kept in the manifest.

    Raises:
        StorageError: the data set or the checkpoint is not finished, or `output` cannot be written.
        DataError: no photo is selected.
        ConfigError: `output` holds descriptors of other photos or another model.
    """
    start = time.monotonic()
    normalized, checkpoint, output = (storage.resolve(uri) for uri in (normalized, checkpoint, output))
    rules = storage.read_manifest(normalized)["positive_rules"]
    images = storage.read_manifest(storage.join(normalized, "images"))
    loaded = load_checkpoint(checkpoint)
    preprocess = preprocess or loaded.preprocess
    how = [loaded.model_id, preprocess.id, config.precision]
    key = _hash([*how, select.model_dump(), images["fingerprint"], rules])
    if storage.has_manifest(output):
        return _finished(output, key, time.monotonic() - start)
    storage.check_can_write(storage.join(output, storage.MANIFEST))
    parts, pairs = _plan(storage.join(normalized, "images"), images["files"], select, how)
    reports = run_parts(
        parts,
        EmbedWorker,
        {
            "checkpoint": checkpoint,
            "output": output,
            "select": select.model_dump(),
            "config": config.model_dump(mode="json"),
            "preprocess": preprocess.model_dump(mode="json"),
            "torch_threads": max(1, int(workers.cpus)),
            "decode_threads": workers.decode_threads,
            "use_gpu": workers.gpus > 0,
        },
        describe="embed",
        num_workers=workers.num_workers,
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        done=lambda part: _finished_part(output, part),
        unit="photos",
    )
    properties = {
        **_made_by_model(loaded, preprocess, registered),
        "images_fingerprint": images["fingerprint"],
        "positive_rule": _common_rule(rules, pairs),
    }
    settings = {"select": select.model_dump(), "embed": config.model_dump(mode="json")}
    _commit(output, reports, key, settings, properties)
    return _report(output, time.monotonic() - start, already_finished=False)


def _plan(
    images: str, files: list[dict[str, Any]], select: PhotoSelection, how: list[str]
) -> tuple[list[Part], set[tuple[str, str]]]:
    """One part for each file with selected photos, and the (dataset, split) of all selected photos."""
    parts, pairs = [], set()
    for file in files:
        uri = storage.join(images, file["path"])
        rows, found = selected_rows(uri, select)
        pairs.update(found)
        if rows:
            part = {
                "name": file["path"].removesuffix(".parquet"),
                "uri": uri,
                "path": file["path"],
                "rows": rows,
            }
            parts.append({**part, "key": _hash([*how, select.model_dump(), file["sha256"]])})
    if not parts:
        wanted = ", ".join(f"{name} {value}" for name, value in select.model_dump().items() if value)
        raise DataError(f"no photo in {images} is selected by {wanted or 'anything: it is empty'}")
    return parts, pairs


def _common_rule(rules: dict[str, Any], pairs: set[tuple[str, str]]) -> dict[str, Any] | None:
    """What counts as a right answer, when all described photos agree on it."""
    found = [rules.get(f"{dataset}/{split}") for dataset, split in sorted(pairs)]
    return found[0] if found and all(rule == found[0] for rule in found) else None


def _made_by_model(
    loaded: LoadedModel, preprocess: PreprocessConfig, registered: Mapping[str, str] | None
) -> dict[str, Any]:
    facts = {
        "model_id": loaded.model_id,
        "preprocessing": preprocess.id,
        "code_bits": loaded.model.code_bits,
        "descriptor_dim": loaded.model.descriptor_dim,
    }
    return {**facts, "registered": dict(registered)} if registered else facts


def _finished_part(output: str, part: Part) -> Report | None:
    """The report of a part that was made from the same input by the same model and is all there, else None."""
    uri = storage.report_uri(output, part)
    if not storage.exists(uri):
        return None
    report: Report = storage.read_json(uri)
    files = [(output, report["descriptors"]), (storage.join(output, "rejects"), report["rejects"])]
    for folder, file in files:
        if file is not None:
            written = storage.join(folder, file["path"])
            if not storage.exists(written) or storage.size(written) != file["bytes"]:
                return None
    return report if report["key"] == part["key"] else None


def _commit(
    output: str, reports: list[Report], key: str, settings: dict[str, Any], properties: dict[str, Any]
) -> None:
    """Reconcile, then write the manifests, the one of the descriptors last."""
    rejected: Counter[str] = Counter()
    for report in reports:
        rejected.update(report["rejected"])
    kept = sum(report["descriptors"]["rows"] for report in reports)
    counts = {"read": sum(report["read"] for report in reports), "kept": kept, "rejected": dict(rejected)}
    if counts["read"] != kept + rejected.total():
        raise ContractError(
            f"embed: photos lost: read {counts['read']}, kept {kept}, rejected {rejected.total()}"
        )
    made_by = {"job": "embed", "key": key, **settings, "counts": counts}
    rejects = [report["rejects"] for report in reports if report["rejects"]]
    storage.commit_manifest(
        storage.join(output, "rejects"), table_manifest("rejects/v1", rejects, made_by=made_by)
    )
    files = [report["descriptors"] for report in reports]
    manifest = table_manifest("descriptors/v1", files, made_by=made_by, properties=properties)
    storage.commit_manifest(output, manifest)


def _finished(output: str, key: str, seconds: float) -> EmbedReport:
    made_by = storage.read_manifest(output)["made_by"]
    if made_by.get("key") != key:
        raise ConfigError(
            f"{output} holds descriptors of other photos, another model or other settings: "
            "choose another output, or remove the folder yourself"
        )
    return _report(output, seconds, already_finished=True)


def _report(output: str, seconds: float, *, already_finished: bool) -> EmbedReport:
    """Read back from what is published, so that a finished run and a repeated one say the same."""
    manifest = storage.read_manifest(output)
    counts, made = manifest["made_by"]["counts"], manifest["properties"]
    sizes = [(made["descriptor_dim"], "floats"), (made["code_bits"], "bits")]
    each = " and ".join(f"{size} {unit}" for size, unit in sizes if size)
    named = made.get("registered")
    version = f" ({named['name']} version {named['version']})" if named else ""
    return EmbedReport(
        output,
        counts["read"],
        counts["kept"],
        counts["rejected"],
        f"{each} each of model {made['model_id'][:12]}{version}",
        seconds,
        already_finished,
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
