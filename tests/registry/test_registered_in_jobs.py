"""`models:/name@alias` wherever a job names a checkpoint; a map that remembers which version made it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.registry.conftest import PREPROCESS, Checkpoint, RunHere, described_here, photo

from placeray import storage
from placeray.errors import PlacerayError
from placeray.jobspecs.tracking import StoreConfig, TrackingConfig
from placeray.model.checkpoint import export_weights, load_checkpoint, write_weights
from placeray.tracking import registry
from placeray.tracking.registry import find_version, locate_checkpoint, model_id_of
from placeray.tracking.store import TrackingError

NAME = "in-jobs"


@pytest.fixture(scope="module")
def first(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint()


@pytest.fixture(scope="module")
def second(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint(seed=5)


@pytest.fixture
def registered(run_here: RunHere, first: Checkpoint, second: Checkpoint) -> str:
    """Two versions of a model; the second is the challenger."""
    for checkpoint, _ in (first, second):
        status, said = run_here("register", f"checkpoint={checkpoint}", f"name={NAME}")
        assert status == 0, said
    return NAME


def test_register_writes_a_version_once(
    run_here: RunHere, client: Any, registered: str, first: Checkpoint
) -> None:
    assert str(find_version(client, f"models:/{NAME}@challenger")) == f"{NAME} version 2"
    status, said = run_here("register", f"checkpoint={first[0]}", f"name={NAME}", "alias=spare")
    model_id = load_checkpoint(first[0]).model_id
    assert f"already registered: {NAME} version 1 (model {model_id[:12]}), models:/{NAME}@spare in" in said
    assert status == 0
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2
    client.delete_registered_model_alias(NAME, "spare")


def test_a_published_file_is_registered_with_a_card_that_says_so(
    run_here: RunHere, client: Any, store: TrackingConfig, first: Checkpoint, tmp_path: Path
) -> None:
    file = str(tmp_path / "published.pth")
    write_weights(file, export_weights(first[1]), data_parallel=True)
    status, said = run_here("register", f"checkpoint={file}", "name=published", "alias=null")
    assert status == 0, said
    assert "wrote published version 1 (model" in said
    located = locate_checkpoint("models:/published/1", store)
    loaded = load_checkpoint(located.uri)
    assert loaded.model_id == load_checkpoint(first[0]).model_id == model_id_of(file, store)
    assert loaded.preprocess.id == "reference-322"
    assert "not known to this checkpoint" in client.get_model_version("published", "1").description


def test_what_cannot_be_registered_is_said_and_leaves_nothing(
    run_here: RunHere, client: Any, tmp_path: Path, first: Checkpoint
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(first[0], folder)
    card = json.loads((Path(first[0]) / "card.json").read_text())
    storage.write_json(str(folder / "card.json"), {**card, "model_id": "0" * 64})
    status, said = run_here("register", f"checkpoint={folder}", "name=broken")
    assert (status, "the card speaks of model 000000000000" in said) == (1, True), said
    status, said = run_here("register", f"checkpoint={tmp_path}/nothing", "name=broken")
    assert (status, "no such file" in said) == (1, True), said
    assert not client.search_registered_models("name = 'broken'")
    status, said = run_here("register", f"checkpoint={first[0]}", "name=a/b")
    assert (status, "name: String should match pattern" in said) == (2, True), said


def test_a_map_remembers_the_version_and_refuses_another(
    run_here: RunHere, registered: str, normalized: str, tmp_path: Path
) -> None:
    of_map = [
        f"normalized={normalized}",
        "select={dataset: drawn, role: database}",
        f"output={tmp_path}/database",
    ]
    status, said = run_here("embed", f"checkpoint=models:/{NAME}/1", *of_map)
    assert (status, f"({NAME} version 1) to {tmp_path}/database" in said) == (0, True), said
    assert "already finished" in run_here("embed", f"checkpoint=models:/{NAME}/1", *of_map)[1]
    status, said = run_here("embed", f"checkpoint=models:/{NAME}@challenger", *of_map)
    assert (status, "another model" in said) == (1, True), said

    to_map = [f"descriptors={tmp_path}/database", f"output={tmp_path}/map"]
    status, said = run_here("index", f"checkpoint=models:/{NAME}@challenger", *to_map)
    assert (status, f"({NAME} version 1), not by models:/{NAME}@challenger (" in said) == (1, True), said
    assert not (tmp_path / "map").exists()
    assert run_here("index", f"checkpoint=models:/{NAME}/1", *to_map)[0] == 0
    model = storage.read_json(f"{tmp_path}/map/v0001/manifest.json")["model"]
    assert model["registered"] == {"name": NAME, "version": "1"}

    (tmp_path / "query.png").write_bytes(photo(3))
    ask = [f"photos=[{tmp_path}/query.png]", f"map={tmp_path}/map", "localize={top_k: 2}", "format=json"]
    status, said = run_here("localize", f"checkpoint=models:/{NAME}/1", *ask)
    assert (status, '"image_id"' in said) == (0, True), said
    status, said = run_here("localize", f"checkpoint=models:/{NAME}@challenger", *ask)
    assert (status, f"do not fit the map {tmp_path}/map of {NAME} version 1: model_id" in said) == (
        1,
        True,
    ), said


def test_evaluate_refuses_a_system_of_another_version(
    run_here: RunHere, registered: str, normalized: str, tmp_path: Path
) -> None:
    model = f"checkpoint=models:/{NAME}/1"
    for role in ("database", "query"):
        values = [
            f"normalized={normalized}",
            f"select={{dataset: drawn, role: {role}}}",
            f"output={tmp_path}/{role}",
        ]
        assert run_here("embed", model, *values)[0] == 0
    assert run_here("index", f"descriptors={tmp_path}/database", f"output={tmp_path}/map")[0] == 0
    system = f"system={{label: toy, map: {tmp_path}/map, queries: {tmp_path}/query}}"
    values = ["benchmark.name=drawn", system, f"output={tmp_path}/report", "tracking.enabled=false"]
    status, said = run_here("evaluate", f"checkpoint=models:/{NAME}@challenger", *values)
    assert (status, f"({NAME} version 1), not by models:/{NAME}@challenger" in said) == (1, True), said
    assert not (tmp_path / "report").exists()
    assert run_here("evaluate", model, *values)[0] == 0


def test_single_photos_and_files(
    run_here: RunHere, registered: str, second: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(photo(1))
    model, inputs = f"checkpoint=models:/{NAME}@challenger", f"inputs={tmp_path}/photo.png"
    assert run_here("describe", model, inputs, f"output={tmp_path}/out.npz")[0] == 0
    said = np.load(tmp_path / "out.npz")["float"]
    np.testing.assert_allclose(said, described_here(second[1], [photo(1)]).float, atol=1e-6)
    status, printed = run_here("heatmap", model, inputs, f"output={tmp_path}/maps")
    assert (status, len(list((tmp_path / "maps").glob("*.png")))) == (0, 1), printed
    assert run_here("convert", model, f"output={tmp_path}/copy")[0] == 0
    assert load_checkpoint(str(tmp_path / "copy")).model_id == load_checkpoint(second[0]).model_id
    assert load_checkpoint(str(tmp_path / "copy")).preprocess == PREPROCESS


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            f"models:/{NAME}@champion",
            f"there is no models:/{NAME}@champion: its aliases are @challenger (version 2)",
        ),
        (f"models:/{NAME}/9", f"there is no models:/{NAME}/9: its aliases are @challenger (version 2)"),
        ("models:/nobody/1", "there is no models:/nobody/1: "),
        ("models:/nobody@x", "there is no models:/nobody@x: "),
        (f"models:/{NAME}", "is no registered model; examples are models:/name@champion and models:/name/3"),
        (f"models:/{NAME}/latest", "is no registered model; examples are"),
    ],
)
def test_names_that_mean_nothing(
    run_here: RunHere, registered: str, tmp_path: Path, uri: str, sentence: str
) -> None:
    for job, more in (
        ("embed", ["normalized=nowhere"]),
        ("train", ["normalized=nowhere", "model={}", "tracking.enabled=false"]),
    ):
        name = "start_from" if job == "train" else "checkpoint"
        status, said = run_here(job, f"{name}={uri}", f"output={tmp_path}/out", *more)
        assert (status, sentence in said, said.count("\n")) == (1, True, 1), said


def test_a_folder_is_found_without_a_store(first: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(uri: str) -> None:
        raise AssertionError(f"nothing to look up in {uri}")

    monkeypatch.setattr(registry, "open_store", closed)
    nowhere = StoreConfig(uri="sqlite:////proc/nowhere/x.db")
    located = locate_checkpoint(first[0], nowhere)
    assert (located.uri, located.version, located.registered) == (first[0], None, None)
    assert model_id_of(first[0], nowhere) == load_checkpoint(first[0]).model_id


def test_a_store_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(
        TrackingError, match=r"cannot open the store sqlite:////proc/nowhere/x\.db: .*correct tracking"
    ):
        locate_checkpoint("models:/any@champion", StoreConfig(uri="sqlite:////proc/nowhere/x.db"))


def test_a_version_whose_files_are_gone(
    client: Any, store: TrackingConfig, make_checkpoint: Callable[..., Checkpoint], run_here: RunHere
) -> None:
    checkpoint, _ = make_checkpoint(seed=11)
    assert run_here("register", f"checkpoint={checkpoint}", "name=gone")[0] == 0
    located = locate_checkpoint("models:/gone/1", store)
    storage.remove(f"{located.uri}/card.json")
    with pytest.raises(
        PlacerayError, match=r"gone version 1 holds no placeray checkpoint: .* has no card\.json"
    ):
        locate_checkpoint("models:/gone/1", store)
