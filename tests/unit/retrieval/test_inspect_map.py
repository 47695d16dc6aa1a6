"""Inspecting a map: sizes are those of the files, the check knows right from wrong, verify finds a changed byte."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from placeray.errors import MapError
from placeray.retrieval.inspect_console import closing_line, print_map
from placeray.retrieval.inspect_map import facts_of, verify
from placeray.retrieval.manifest import publish, read_map_manifest
from placeray.retrieval.map_lists import build_lists, calibrate, calibrated, learn_quantizer, plan_runs
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.plan import IndexConfig
from placeray.retrieval.self_check import CheckConfig, check_map
from placeray.retrieval.update import UpdateConfig, run_update

COUNT = 400
QUICK = CheckConfig(check_queries=60, timed_singles=2, timed_batches=1, batch_size=8)


def clustered(rng: np.random.Generator, bits: int = 128, dim: int = 16):
    """Codes and floats of 40 places with ten photos each, so that a photo left out has right answers left."""
    centre = rng.integers(0, 256, (COUNT // 10, bits // 8), dtype=np.uint8).repeat(10, axis=0)
    codes = centre ^ np.packbits(rng.random((COUNT, bits)) < 0.05, axis=1)
    floats = rng.standard_normal((COUNT // 10, dim)).repeat(10, axis=0) + 0.1 * rng.standard_normal(
        (COUNT, dim)
    )
    return codes, (floats / np.linalg.norm(floats, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def flat(make_descriptors, make_map):
    codes, floats = clustered(np.random.default_rng(1))
    lat = 48.0 + (np.arange(COUNT) // 10) * 0.01
    lat[-3:] = np.nan
    lon = np.where(np.isnan(lat), np.nan, 11.0)
    return make_map(make_descriptors(codes, floats, lat=lat, lon=lon), rows_per_shard=150)


def add_lists(root: str, num_lists: int) -> None:
    """A new version of a map with inverted lists."""
    manifest = read_map_manifest(root)
    quantizer = learn_quantizer(root, manifest, num_lists)
    runs = plan_runs(manifest, quantizer)
    for run in runs:
        build_lists(root, run)
    found = calibrate(root, manifest, quantizer, IndexConfig(calibration_queries=100), num_threads=1)
    publish(root, calibrated(manifest, quantizer, runs, found))


def test_facts_of_a_flat_map(flat):
    with PlaceMap.open(flat, num_threads=1) as place_map:
        facts, check = facts_of(place_map), check_map(place_map, QUICK)
    json.dumps([facts, check])
    files = [path for path in Path(flat, "shards").rglob("*") if path.is_file() and path.name != "shard.json"]
    assert facts["bytes"]["total"] == sum(path.stat().st_size for path in files)
    assert facts["bytes"]["codes"] == facts["memory"]["resident"] == COUNT * 16
    assert facts["bytes"]["scales"] == COUNT * 4
    assert facts["bytes"]["all_versions"] > facts["bytes"]["total"]
    shards = facts["shards"]
    assert shards["count"] * shards["rows_min"] <= COUNT <= shards["count"] * shards["rows_max"]
    assert shards["rows_max"] <= 150
    assert facts["area"]["positions_known"] == COUNT - 3
    assert [item["version"] for item in facts["versions"]] == ["v0001"]
    assert check is not None
    lists = check["shortlists"]
    assert (lists["hit_auto"], lists["overlap"], lists["hit_rate"]) == (lists["hit_exact"], 1.0, 1.0)
    assert lists["hit_exact"] > 0.9
    assert lists["rule"] == "right is a photo within 25 m"
    assert check["latency"]["exact"]["codes_scanned"] == COUNT
    assert closing_line(facts, check) == (
        f"inspect_map: {facts['shards']['count']} shards, {COUNT} photos, 0 removed, v0001, "
        "hit rate 1.00 of exhaustive"
    )


def test_lists_that_miss_are_seen(make_descriptors, make_map, draw_random):
    """Photos of one spot have unrelated codes here, so lists separate them."""
    codes, floats = draw_random(np.random.default_rng(6), COUNT, 128, 16)
    lat = 48.0 + (np.arange(COUNT) // 10) * 0.01
    root = make_map(make_descriptors(codes, floats, lat=lat, lon=np.full(COUNT, 11.0)), rows_per_shard=150)
    add_lists(root, 16)
    found = read_map_manifest(root, "v0002")
    all_lists, one_list = ({**found, "index": {**found["index"], "nprobe": nprobe}} for nprobe in (16, 1))
    with PlaceMap(root, all_lists, num_threads=1) as good, PlaceMap(root, one_list, num_threads=1) as bad:
        facts = facts_of(good)
        checks = [check_map(place_map, QUICK) for place_map in (good, bad)]
        verify(good)
    assert facts["index"]["lists"] == 16
    assert facts["index"]["calibration"]["hit_rate"] >= 0.99
    assert facts["memory"]["resident"] == facts["bytes"]["lists"] > COUNT * 16
    fine, missed = (check["shortlists"] for check in checks)
    assert (fine["hit_rate"], fine["overlap"]) == (1.0, 1.0)
    assert missed["hit_rate"] < 0.9
    assert missed["hit_auto"] == pytest.approx(missed["hit_rate"] * missed["hit_exact"])
    assert missed["overlap"] < 0.6
    assert missed["hit_exact"] == fine["hit_exact"]
    assert checks[0]["latency"]["auto"]["codes_scanned"] == COUNT
    assert checks[1]["latency"]["auto"]["codes_scanned"] == COUNT // 16
    console = Console(record=True, width=160)
    print_map(facts, checks[0], console)
    text = console.export_text()
    for words in ("of 16 lists are searched", "wanted 0.99", "hit@100", "codes scanned each"):
        assert words in text


def test_removed_photos_are_counted_and_not_asked_for(flat):
    run_update(flat, UpdateConfig(remove=tuple(f"photo-{i:06d}" for i in range(0, COUNT, 2))))
    with PlaceMap.open(flat, num_threads=1) as place_map:
        facts, check = (
            facts_of(place_map),
            check_map(place_map, CheckConfig(check_queries=COUNT, timed_singles=1)),
        )
    assert (facts["photos"], facts["live"], facts["removed"]) == (COUNT, COUNT // 2, COUNT // 2)
    assert facts["bytes"]["tombstones"] == 4 * COUNT // 2
    assert facts["versions"][-1]["removed"] == COUNT // 2
    assert check is not None
    assert check["queries"] == COUNT // 2


def test_maps_without_codes_or_floats_and_no_check(make_descriptors, make_map):
    codes, floats = clustered(np.random.default_rng(2))
    with PlaceMap.open(make_map(make_descriptors(codes, None)), num_threads=1) as place_map:
        check = check_map(place_map, QUICK)
        assert check is not None
        assert check["top1"]["agreement"] is None
        assert check_map(place_map, CheckConfig(check_queries=0)) is None
    with PlaceMap.open(make_map(make_descriptors(None, floats)), num_threads=1) as place_map:
        facts = facts_of(place_map)
        assert facts["memory"]["resident"] == facts["bytes"]["descriptors"] + facts["bytes"]["scales"]
        assert check_map(place_map, QUICK) is None
        assert closing_line(facts, None).endswith("v0001, hit rate not measured")


def test_two_stages_agree_where_the_shortlist_holds_all_and_not_where_codes_lie(make_descriptors, make_map):
    codes, floats = clustered(np.random.default_rng(3))
    wrong = np.random.default_rng(4).integers(0, 256, codes.shape, dtype=np.uint8)
    shares = []
    for some in (codes, wrong):
        with PlaceMap.open(make_map(make_descriptors(some, floats)), num_threads=1) as place_map:
            check = check_map(place_map, QUICK)
            assert check is not None
            shares.append(check["top1"]["agreement"])
    assert shares[0] > 0.95
    assert shares[1] < 0.6  # a shortlist of 100 random ones of 400


@pytest.mark.parametrize("pattern", ["shards/*/codes.u8", "ivf/*/*/order.u32", "ivf/*/centroids.u8"])
def test_verify_names_a_changed_file(flat, pattern):
    add_lists(flat, 8)
    path = next(iter(Path(flat).glob(pattern)))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with PlaceMap.open(flat, num_threads=1) as place_map, pytest.raises(MapError, match=str(path)):
        verify(place_map)
