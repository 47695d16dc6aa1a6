"""A map on a terminal: its facts and its self-check as tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Line = tuple[str, str]


def print_map(
    facts: Mapping[str, Any], check: Mapping[str, Any] | None, console: Console | None = None
) -> None:
    """Print `inspect_map.facts_of` and `self_check.check_map`."""
    out = console or Console()
    out.print(_pairs(f"{facts['map']} {facts['version']}", [*_model(facts), *_index(facts)]))
    out.print(_sizes(facts))
    out.print(_versions(facts["versions"]))
    if check is None:
        out.print("self-check: none (left out, nothing to ask for, or a model without codes)")
        return
    out.print(_pairs(f"self-check: {check['made_of']}", list(_quality(check))))
    out.print(_latency(check["latency"]))


def closing_line(facts: Mapping[str, Any], check: Mapping[str, Any] | None) -> str:
    """The line a person checks."""
    rate = None if check is None else check["shortlists"]["hit_rate"]
    said = "hit rate not measured" if rate is None else f"hit rate {rate:.2f} of exhaustive"
    return (
        f"inspect_map: {facts['shards']['count']} shards, {facts['photos']} photos, {facts['removed']} removed, "
        f"{facts['version']}, {said}"
    )


def _model(facts: Mapping[str, Any]) -> Iterator[Line]:
    model, shards, area = facts["model"], facts["shards"], facts["area"]
    named = model.get("registered")
    yield (
        "model",
        model["model_id"][:12] + (f" ({named['name']} version {named['version']})" if named else ""),
    )
    yield "preprocessing", str(model["preprocessing"])
    yield (
        "vectors",
        (f"{model['code_bits']} bits, {model['descriptor_dim']} floats stored as {facts['descriptor_type']}"),
    )
    yield "photos", f"{facts['photos']}, of them {facts['removed']} removed"
    yield "shards", f"{shards['count']} of {shards['rows_min']} to {shards['rows_max']} rows"
    yield "positions", f"{area['positions_known']} of {facts['live']} photos"
    box = area["bbox"]
    yield (
        "area",
        "unknown" if box is None else "west {:.5f} south {:.5f} east {:.5f} north {:.5f}".format(*box),
    )


def _index(facts: Mapping[str, Any]) -> Iterator[Line]:
    index = facts["index"]
    yield "shortlist", f"{facts['default_shortlist']} by default"
    if index["type"] != "ivf":
        yield "index", f"{index['type']}: every code is compared"
        return
    found = index["calibration"]
    yield "index", f"{index['type']}: {index['nprobe']} of {index['lists']} lists are searched"
    yield (
        "calibration",
        (
            f"wanted {found['target']:.3f}, reached {found['hit_rate']:.3f} on {found['num_queries']} queries: "
            f"{found['queries']}"
        ),
    )
    yield "lists -> hit rate", ", ".join(f"{lists}: {rate:.3f}" for lists, rate in found["curve"].items())


def _quality(check: Mapping[str, Any]) -> Iterator[Line]:
    lists, top1 = check["shortlists"], check["top1"]
    yield "right", lists["rule"]
    yield f"hit@{lists['size']}", f"{lists['hit_auto']:.3f} as the map is set, {lists['hit_exact']:.3f} exact"
    yield "overlap", "-" if lists["overlap"] is None else f"{lists['overlap']:.3f} of the exact shortlist"
    agreed = "-" if top1["agreement"] is None else f"{top1['agreement']:.3f}"
    yield "same best photo", f"{agreed} ({top1['note']})"


def _sizes(facts: Mapping[str, Any]) -> Table:
    table = Table(title="on disk", title_justify="left")
    for name in ("kind", "bytes", "per photo"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    photos = facts["photos"] or 1
    sizes = {
        name: value for name, value in facts["bytes"].items() if name not in ("per_photo", "all_versions")
    }
    sizes |= {
        "wanted in memory": facts["memory"]["resident"],
        "read as needed": facts["memory"]["mapped"],
        "folder, all versions": facts["bytes"]["all_versions"],
    }
    for name, value in sizes.items():
        table.add_row(
            name, _bytes(value), f"{value / photos:.0f}", end_section=name in ("tombstones", "total")
        )
    return table


def _versions(found: list[dict[str, Any]]) -> Table:
    table = Table(title="versions", title_justify="left")
    for name in ("version", "created", "photos", "removed", "after"):
        table.add_column(name)
    for item in found:
        if "error" in item:
            table.add_row(item["version"], "damaged", "-", "-", "-")
        else:
            numbers = (str(item["rows"]), str(item["removed"]))
            table.add_row(item["version"], item["created_at"], *numbers, item["parent"] or "-")
    return table


def _latency(latency: Mapping[str, Any]) -> Table:
    table = Table(title="latency on this machine, median", title_justify="left")
    for name in ("mode", "queries", "ms", "queries/s", "stage 1 ms", "codes scanned each", "GB/s"):
        table.add_column(name, justify="right")
    for mode, found in latency.items():
        for name, asked in (("single", 1), ("batch", found["batch_size"])):
            spent = found[name]
            rate = "-" if spent["scan_gb_per_s"] is None else f"{spent['scan_gb_per_s']:.2f}"
            values = (
                f"{spent['median_ms']:.2f}",
                f"{spent['queries_per_s']:.0f}",
                f"{spent['first_stage_ms']:.2f}",
            )
            table.add_row(mode, str(asked), *values, str(found["codes_scanned"]), rate)
    return table


def _pairs(title: str, lines: list[Line]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, text in lines:
        table.add_row(name, text)
    return table


def _bytes(value: int) -> str:
    return f"{value / 1e6:.2f} MB" if value >= 10_000 else f"{value} B"
