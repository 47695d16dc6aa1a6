"""Independent parts on a real local Ray: order, errors as one sentence, lost workers, finished parts."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from placeray.cluster.parts import run_parts
from placeray.errors import DataError, PlacerayError

PARTS = [{"name": f"part {number}", "rows": number + 1} for number in range(8)]


def worker(folder: Path, bad: str = "", error: type[Exception] = ValueError, killed: str = "") -> Any:
    """A worker class that leaves a file per part; local, so that it travels to Ray by value."""

    class Worker:
        def __init__(self, greeting: str) -> None:
            self.greeting = greeting

        def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
            name = part["name"]
            if name == bad:
                raise error("the first line\nand another")
            if name == killed and not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            (folder / name).touch()
            return {"said": f"{self.greeting} {name}"}

    return Worker


def run(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    made = worker(folder, **{key: settings.pop(key) for key in ("bad", "error", "killed") if key in settings})
    return run_parts(PARTS, made, {"greeting": "hello"}, describe="greet", num_cpus=0.5, **settings)


def test_reports_come_in_the_order_of_the_parts(ray_session: Any, tmp_path: Path, capsys: Any) -> None:
    assert [report["said"] for report in run(tmp_path)] == [f"hello {part['name']}" for part in PARTS]
    assert "greet (parts): 36/36" in capsys.readouterr().err


def test_finished_parts_are_not_run_again(ray_session: Any, tmp_path: Path) -> None:
    def done(part: dict[str, Any]) -> dict[str, Any] | None:
        return {"said": "before"} if part["rows"] % 2 else None

    reports = run(tmp_path, done=done)
    assert [report["said"] == "before" for report in reports] == [True, False] * 4
    assert len(list(tmp_path.iterdir())) == 4
    assert run(tmp_path, done=lambda part: {"said": "all"}) == [{"said": "all"}] * 8


def test_an_error_is_one_sentence_and_finished_parts_stay(ray_session: Any, tmp_path: Path) -> None:
    with pytest.raises(PlacerayError) as raised:
        run(tmp_path, bad="part 6", num_workers=1)
    assert str(raised.value).startswith(
        "greet: part 'part 6' failed: ValueError: the first line (test_parts.py:"
    )
    assert "\n" not in str(raised.value)
    assert {file.name for file in tmp_path.iterdir()} >= {f"part {number}" for number in range(6)}


def test_parts_under_way_end_before_the_error_and_no_further_one_begins(
    ray_session: Any, tmp_path: Path, capsys: Any
) -> None:
    """Ray would stop their workers in the middle of a file."""

    class Worker:
        def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
            name = part["name"]
            if name == "part 0":
                while not list(tmp_path.glob("begun *")):
                    time.sleep(0.01)
                raise DataError("no room")
            (tmp_path / f"begun {name}").touch()
            time.sleep(1)
            (tmp_path / f"ended {name}").touch()
            return {}

    parts = [{"name": f"part {number}"} for number in range(20)]
    with pytest.raises(PlacerayError, match="part 'part 0' failed: no room"):
        run_parts(parts, Worker, describe="greet", num_workers=2, num_cpus=0.5)
    begun = len(list(tmp_path.glob("begun *")))
    assert len(list(tmp_path.glob("ended *"))) == begun
    assert 1 <= begun < 15  # the error takes a moment to be heard of
    time.sleep(1.5)
    assert len(list(tmp_path.glob("begun *"))) == begun
    assert (
        "greet: part 'part 0' failed: no room; parts under way are being finished" in capsys.readouterr().err
    )


def test_an_expected_error_keeps_its_words(ray_session: Any, tmp_path: Path) -> None:
    with pytest.raises(PlacerayError, match="part 'part 0' failed: the first line"):
        run(tmp_path, bad="part 0", error=DataError)


def test_a_killed_worker_is_replaced(ray_session: Any, tmp_path: Path) -> None:
    assert len(run(tmp_path, killed="part 2")) == 8
    assert (tmp_path / "killed").exists()


def test_a_worker_that_fits_nowhere_is_an_error(ray_session: Any, tmp_path: Path) -> None:
    with pytest.raises(
        PlacerayError, match=r"wants num_cpus=64 and num_gpus=0\.0, but the cluster has 4 CPUs"
    ):
        run_parts(PARTS, worker(tmp_path), {"greeting": "hi"}, describe="greet", num_cpus=64)
