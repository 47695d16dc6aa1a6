"""One tiny city with all layouts and faults, drawn once for all tests of this room."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from placeray.config import load_config
from placeray.jobspecs.draw_city import DrawCityJob
from placeray.toycity.city import CityReport, draw_city
from placeray.toycity.config import ToyCityConfig


@dataclass(frozen=True)
class TinyCity:
    root: Path
    config: ToyCityConfig
    report: CityReport
    document: dict[str, Any]

    def faults(self, source: str) -> list[dict[str, Any]]:
        return [fault for fault in self.document["faults"] if fault["source"].startswith(source)]


@pytest.fixture(scope="session")
def tiny_config(repository: Path) -> ToyCityConfig:
    return load_config(DrawCityJob, repository / "jobs/configs/draw_city/tiny.yaml").city


@pytest.fixture(scope="session")
def tiny_city(tmp_path_factory: pytest.TempPathFactory, tiny_config: ToyCityConfig) -> TinyCity:
    root = tmp_path_factory.mktemp("city")
    report = draw_city(tiny_config, str(root), num_workers=1)
    return TinyCity(root, tiny_config, report, json.loads((root / "toycity.json").read_text()))
