"""The registered model: what is in it, what it takes and gives, and that it runs without us and behind a server."""

import base64
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from packaging.requirements import Requirement
from tests.registry.conftest import (
    PREPROCESS,
    TRAINED,
    Checkpoint,
    described_here,
    free_port,
    photo,
    serving,
)

from placeray.jobspecs.register import StatementConfig
from placeray.jobspecs.tracking import TrackingConfig
from placeray.model.preprocess import decode, decode_to_input
from placeray.model.selavpr import SelaVPR
from placeray.tracking.model_package import PACKAGES
from placeray.tracking.registering import register_checkpoint
from placeray.tracking.registry import Version, find_version, unpacked
from placeray.tracking.runs import tracked_run

PHOTOS = [photo(seed) for seed in range(3)]
NAME = "served"


@pytest.fixture(scope="module")
def trained(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint(card=TRAINED)


@pytest.fixture(scope="module")
def version(store: TrackingConfig, client: Any, trained: Checkpoint) -> Version:
    statement = StatementConfig(licence="CC0, made up for a test", notes=("Not for real photos.",))
    with tracked_run("register", {}, store) as run:
        return register_checkpoint(client, trained[0], NAME, str(run.id), statement=statement)


@pytest.fixture(scope="module")
def folder(store: TrackingConfig, client: Any, version: Version) -> Path:
    """Of the whole MLflow model."""
    return Path(unpacked(client, version, store)).parents[1]


@pytest.fixture
def served(version: Version, same_path: None) -> Any:
    return mlflow.pyfunc.load_model(f"models:/{NAME}/{version.version}")


def test_nothing_in_the_model_is_a_pickle_of_ours_and_all_of_it_is_needed(folder: Path) -> None:
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"served_model.py", "artifacts/checkpoint/model.pt", "artifacts/checkpoint/card.json"} <= files
    assert {"artifacts/model_card.md", "code/placeray/schemas/frozen.json", "requirements.txt"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pyc"))]
    rooms = {name.split("/")[2] for name in files if name.startswith("code/placeray/")}
    assert not rooms & {"cluster", "tracking", "training", "retrieval", "toycity"}
    pinned = [line.split("==") for line in (folder / "requirements.txt").read_text().splitlines()]
    assert [name for name, _ in pinned] == ["mlflow", *PACKAGES]
    for name, release in pinned:
        assert importlib.metadata.version(name).split("+")[0] == release


def test_the_version_says_what_it_is_and_can_be_searched(client: Any, version: Version, folder: Path) -> None:
    found = client.get_model_version_by_alias(NAME, "challenger")
    assert str(found.version) == version.version
    card = (folder / "artifacts" / "model_card.md").read_text()
    assert found.description == card
    for part in (
        "**Recipe**: hash, 4 epochs of at most 5",
        "places `" + "f" * 64,
        "gsv-cities (190 places), sf-xl (1,200 places)",
        "| set | search | R@1 | R@5 |",
        "| msls-val | binary | 50.0 % |  |",
        "| msls-val | two-stage | 73.1 % | 90.0 % |",
        "CC0, made up for a test",
        "Not for recognising people",
        "Not for real photos.",
    ):
        assert part in card, part
    for fact in ("recipe` = 'hash", "code_bits` = '64", "preprocessing` = 'platform-28", "backbone` = 'toy"):
        hits = client.search_model_versions(f"name = '{NAME}' and tags.`placeray.{fact}'")
        assert [str(hit.version) for hit in hits] == [version.version], fact
    assert not client.search_model_versions(f"name = '{NAME}' and tags.`placeray.recipe` = 'float'")
    logged = client.get_logged_model(found.source.removeprefix("models:/"))
    assert logged.params["recipe"] == "hash"
    assert str(logged.status) == "READY"
    assert logged.source_run_id == found.run_id


def test_the_same_checkpoint_is_not_a_second_version(
    store: TrackingConfig, client: Any, trained: Checkpoint, version: Version
) -> None:
    with tracked_run("again", {}, store) as run:
        assert register_checkpoint(client, trained[0], NAME, str(run.id), alias="spare") == version
    assert find_version(client, f"models:/{NAME}@spare") == version
    client.delete_registered_model_alias(NAME, "spare")


def test_photos_by_bytes_path_and_array(served: Any, trained: Checkpoint, tmp_path: Path) -> None:
    expected = described_here(trained[1], PHOTOS)
    (tmp_path / "photo.png").write_bytes(PHOTOS[1])
    pixels, ready = np.array(decode(PHOTOS[2])), decode_to_input(PHOTOS[0], PREPROCESS).numpy()
    for rows in (
        [{"image": data} for data in PHOTOS],
        [{"image": PHOTOS[0]}, {"path": str(tmp_path / "photo.png")}, {"array": pixels}],
        [{"array": ready}, {"image": PHOTOS[1]}, {"array": pixels.tolist()}],
        [{"array": ready.tolist()}, {"image": PHOTOS[1]}, {"image": PHOTOS[2]}],
    ):
        answer = served.predict(pd.DataFrame(rows))
        assert list(answer.columns) == ["code", "descriptor"]
        assert answer["code"].tolist() == [code.tobytes() for code in expected.codes]
        # Rows of another size go through the network in another batch, which moves the last bit.
        np.testing.assert_allclose(np.stack(answer["descriptor"]), expected.float, atol=1e-6)
    assert served.predict([{"image": PHOTOS[0]}]).shape == (1, 2), "a list of dicts is a table too"


def test_arrays_of_another_size_pass_as_they_are(served: Any, trained: Checkpoint) -> None:
    big = np.random.default_rng(1).standard_normal((3, 42, 56)).astype(np.float32)
    answer = served.predict(pd.DataFrame({"array": [big, big[:, :28, :28], big]}))
    assert (answer["descriptor"][0] == answer["descriptor"][2]).all()
    assert np.abs(answer["descriptor"][0] - answer["descriptor"][1]).max() > 1e-3


def test_a_broken_photo_refuses_the_table_or_only_its_row(served: Any) -> None:
    table = pd.DataFrame({"image": [PHOTOS[0], b"no photo", PHOTOS[1]]})
    with pytest.raises(MlflowException, match="row 1: cannot decode the image"):
        served.predict(table)
    answer = served.predict(table, params={"on_error": "row"})
    assert answer["error"][1].startswith("row 1: cannot decode the image")
    assert answer["error"].isna().tolist() == [True, False, True]
    assert answer["code"][1] is None
    assert answer["descriptor"][1] is None
    np.testing.assert_allclose(
        np.stack([answer["descriptor"][0], answer["descriptor"][2]]),
        np.stack(served.predict(pd.DataFrame({"image": PHOTOS[:2]}))["descriptor"]),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"picture": b"x"}], "none of the columns image, path, array"),
        ([{"image": None}], "row 0: it has no photo; fill one of image, path, array"),
        ([{"image": b"x", "path": "x"}], "row 0: it has image, path; fill one of"),
        ([{"path": "/nowhere/x.jpg"}], "row 0: no such file: /nowhere/x.jpg"),
        ([{"image": "x.jpg"}], "row 0: image is a str, not the bytes of a photo"),
        ([{"image": 3}], "Incompatible input types for column image"),
        ([{"path": 3}], "Incompatible input types for column path"),
        ([{"array": np.zeros((3, 28))}], r"row 0: array is float64 \(3, 28\); wanted is uint8"),
        ([{"array": np.full((8, 8, 3), 300)}], "row 0: array is int64"),
        ([{"array": [[1], [1, 2]]}], "row 0: array is object"),
        ([{"array": np.zeros((0, 8, 3), np.uint8)}], r"row 0: array is uint8 \(0, 8, 3\)"),
        (
            [{"array": np.zeros((3, 30, 28))}],
            "row 0: the input is 30 x 28 pixels; its sides must be multiples",
        ),
    ],
)
def test_what_is_no_photo_is_refused_in_one_sentence(
    served: Any, rows: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(MlflowException, match=sentence):
        served.predict(pd.DataFrame(rows))


@pytest.mark.usefixtures("same_path")
@pytest.mark.parametrize(("without", "column"), [("float_head", "code"), ("hash_bits", "descriptor")])
def test_models_with_one_branch(
    store: TrackingConfig,
    client: Any,
    make_checkpoint: Callable[..., Checkpoint],
    without: str,
    column: str,
) -> None:
    checkpoint, _ = make_checkpoint(**{without: None})
    with tracked_run("register", {}, store) as run:
        made = register_checkpoint(client, checkpoint, f"only-{column}", str(run.id))
    one = mlflow.pyfunc.load_model(f"models:/only-{column}/{made.version}")
    assert [spec.name for spec in one.metadata.signature.outputs.inputs] == [column, "error"]
    assert list(one.predict(pd.DataFrame({"image": PHOTOS})).columns) == [column]


@pytest.mark.usefixtures("same_path")
def test_configuration_of_a_load(version: Version, trained: Checkpoint) -> None:
    changes = {"batch_size": 1, "precision": "bf16", "device": "cpu"}
    half = mlflow.pyfunc.load_model(f"models:/{NAME}/{version.version}", model_config=changes)
    answer = np.stack(half.predict(pd.DataFrame({"image": PHOTOS}))["descriptor"])
    apart = np.abs(answer - described_here(trained[1], PHOTOS).float).max()
    assert 0 < apart < 0.05


def requirements_with_theirs(names: list[str]) -> set[str]:
    """The distributions that installing `names` would bring, by their metadata in this environment."""
    found: set[str] = set()
    seen: list[tuple[str, set[str]]] = []
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        key = wanted.name.lower().replace("_", "-")
        if (key, wanted.extras) in seen:
            continue
        seen.append((key, wanted.extras))
        try:
            theirs = importlib.metadata.requires(wanted.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(key)
        for line in theirs:
            inner = Requirement(line)
            marker = inner.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(inner)
    return found


def run_bare(python: str, folder: Path, tmp_path: Path, model: SelaVPR, *more: str) -> set[str]:
    """Describe PHOTOS in another interpreter and compare; returns the modules it imported."""
    np.savez(
        tmp_path / "photos.npz", **{str(i): np.frombuffer(data, np.uint8) for i, data in enumerate(PHOTOS)}
    )
    script = str(Path(__file__).with_name("describe_bare.py"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, script, str(folder), str(tmp_path / "photos.npz"), str(tmp_path / "out.npz"), *more],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said, expected = np.load(tmp_path / "out.npz"), described_here(model, PHOTOS)
    assert said["codes"].tobytes() == expected.codes.tobytes()
    np.testing.assert_allclose(said["float"], expected.float, rtol=0, atol=1e-6)
    return set(said["modules"].tolist())


def test_with_its_requirements_alone_it_says_what_the_training_process_says(
    folder: Path, trained: Checkpoint, tmp_path: Path
) -> None:
    lines = (folder / "requirements.txt").read_text().splitlines()
    wanted = requirements_with_theirs([line.split("==")[0] for line in lines])
    assert "ray" not in wanted
    modules = importlib.metadata.packages_distributions()
    allowed = [
        name
        for name, owners in modules.items()
        if {owner.lower().replace("_", "-") for owner in owners} & wanted
    ]
    assert not {"ray", "faiss", "s3fs", "placeray"} & set(allowed)
    (tmp_path / "allowed.json").write_text(json.dumps(allowed))
    imported = run_bare(sys.executable, folder, tmp_path, trained[1], str(tmp_path / "allowed.json"))
    assert "ray" not in imported
    needed = {"pillow": "PIL", "pyyaml": "yaml"}
    assert {needed.get(name, name) for name in PACKAGES} <= imported, (
        "a requirement that describing does not use"
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_in_a_fresh_environment(folder: Path, trained: Checkpoint, tmp_path: Path) -> None:
    """As a user would: a new environment, `pip install -r` the model's own file. 6.5 GB and minutes."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), "fsspec"]
    if subprocess.run(pip, capture_output=True, check=False).returncode:
        pytest.skip("no package index can be reached")
    with tempfile.TemporaryDirectory() as fresh:  # pytest keeps its folders, and this one is large
        venv.create(fresh, with_pip=True)
        python = f"{fresh}/bin/python"
        install = [
            python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "-r", str(folder / "requirements.txt"),
        ]  # fmt: skip
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        run_bare(python, folder, tmp_path, trained[1])


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_mlflow_serves_it(
    store: TrackingConfig, version: Version, trained: Checkpoint, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@challenger",
        "--host", "127.0.0.1", "--port", str(port), "--env-manager", "local",
    ]  # fmt: skip
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "MLFLOW_TRACKING_URI": store.uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    encoded = [base64.b64encode(data).decode() for data in PHOTOS]
    pixels = np.array(decode(PHOTOS[2])).tolist()
    expected = described_here(trained[1], PHOTOS)
    with serving(command, environment, f"{url}/ping", tmp_path / "serve.log"):
        answers = []
        # MLflow decodes the base64 of a whole column: a request fills one column.
        for rows in ([{"image": encoded[0]}, {"image": encoded[1]}], [{"array": pixels}]):
            status, answer = post(url, {"dataframe_records": rows})
            assert status == 200, answer
            answers += answer["predictions"]
        codes = [base64.b64decode(row["code"]) for row in answers]
        assert codes == [code.tobytes() for code in expected.codes]
        floats = np.array([row["descriptor"] for row in answers], np.float32)
        np.testing.assert_allclose(floats, expected.float, rtol=0, atol=1e-6)

        broken = {"dataframe_records": [{"image": base64.b64encode(b"no photo").decode()}]}
        status, answer = post(url, broken)
        assert (status, "row 0: cannot decode the image" in answer["message"]) == (400, True), answer
        status, answer = post(url, {**broken, "params": {"on_error": "row"}})
        assert (status, answer["predictions"][0]["descriptor"]) == (200, None)
        (tmp_path / "photo.png").write_bytes(PHOTOS[0])
        status, answer = post(url, {"dataframe_records": [{"path": str(tmp_path / "photo.png")}]})
        assert (status, "this server opens no paths" in answer["message"]) == (400, True), answer
