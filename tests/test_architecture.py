"""The house rules that no linter knows: the standard library stays intact, imports have no side effects, and
the import contracts really fail when a room reaches where it may not."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def test_source_root_never_shadows_the_standard_library(repository: Path) -> None:
    assert not (repository / "platform" / "__init__.py").exists()
    assert platform.system()


@pytest.mark.parametrize(
    ("room", "banned"),
    [
        ("placeray.retrieval.place_map", ("torch", "ray", "mlflow")),
        ("placeray.retrieval.many", ("torch", "ray", "mlflow")),
        ("placeray.jobspecs.inspect_map", ("torch", "ray", "mlflow")),
        ("placeray.metrics", ("torch", "ray", "mlflow", "faiss")),
        ("placeray.model.selavpr", ("ray", "mlflow", "faiss")),
        ("placeray.training.loop", ("ray", "mlflow", "faiss")),
        ("placeray.datasets", ("torch", "ray", "mlflow", "faiss")),
        ("placeray.localization", ("ray", "mlflow")),
        ("placeray.overview.look", ("torch", "ray", "mlflow", "faiss")),
    ],
)
def test_core_runs_without(repository: Path, room: str, banned: tuple[str, ...]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(repository / 'platform')!r}); import {room}; "
        f"loaded = [m for m in {banned!r} if m in sys.modules]; sys.exit(f'{room} loads {{loaded}}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_contracts_hold_and_catch_a_trespass(repository: Path, tmp_path: Path) -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is a development tool and not installed here")
    shutil.copytree(
        repository / "platform", tmp_path / "platform", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(repository / "pyproject.toml", tmp_path)
    command = [str(linter), "--no-cache"]
    environment = {"PYTHONPATH": str(tmp_path / "platform"), "PATH": "/usr/bin:/bin"}

    def lint() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    clean = lint()
    assert clean.returncode == 0, clean.stdout
    with (tmp_path / "platform/placeray/metrics.py").open("a") as file:
        file.write("\nimport ray\n")
    trespass = lint()
    assert trespass.returncode != 0
    assert "placeray.metrics -> ray" in trespass.stdout


@pytest.mark.parametrize("line_limit", [80])
def test_job_scripts_are_a_page_and_import_only_the_package(repository: Path, line_limit: int) -> None:
    scripts = sorted((repository / "jobs").glob("*.py"))
    assert scripts
    for script in scripts:
        text = script.read_text()
        assert len(text.splitlines()) <= line_limit, f"{script.name} is longer than a page"
        for line in text.splitlines():
            if line.startswith(("import ", "from ")):
                module = line.split()[1].split(".")[0]
                assert module == "placeray" or module in sys.stdlib_module_names, f"{script.name}: {line}"
