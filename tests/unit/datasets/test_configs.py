"""The configs that a user copies: each loads, and together they show every kind of source."""

from pathlib import Path

import pytest

from placeray.config import load_config
from placeray.datasets import DATASETS
from placeray.jobspecs.normalize import NormalizeJob


def test_configs_show_every_kind_of_source(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACERAY_RAW_DATA", "/data")
    sources = []
    for file in sorted((repository / "jobs/configs/normalize").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# "), f"{file.name} does not say what it is for"
        sources += load_config(NormalizeJob, file).normalize.sources
    assert {source.kind for source in sources} == DATASETS.keys()
    lists = {source.query_list for source in sources if source.kind == "msls" and source.split == "val"}
    assert lists == {"official-740", "official-747", "official-750", "vg-11084"}
    rules = {source.positive.kind for source in sources if source.positive is not None}
    assert rules == {"radius", "frames", "exact"}
