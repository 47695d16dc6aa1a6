"""Sample rows of rejects/v1: some of every reason."""

from placeray import storage
from placeray.overview.blocks import read_blocks
from placeray.overview.figures import RejectSample

COLUMNS = ("dataset", "reason", "source_uri", "detail")


def sample_rejects(root: str, per_reason: int, rows_per_block: int) -> list[RejectSample]:
    """The first refused inputs of every data set and reason in a normalized data set, by uri."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    folder = storage.join(root, "rejects")
    for block in read_blocks(folder, COLUMNS, rows_per_block) if per_reason else ():
        for (dataset, reason), rows in block.select(COLUMNS).to_pandas().groupby(["dataset", "reason"]):
            first = rows.sort_values(["source_uri", "detail"]).head(per_reason)
            pairs = list(zip(first["source_uri"], first["detail"], strict=True))
            known = found.get((dataset, reason), [])
            found[dataset, reason] = sorted(known + pairs)[:per_reason]
    return [
        RejectSample(dataset=dataset, reason=reason, rows=rows)
        for (dataset, reason), rows in sorted(found.items())
    ]
