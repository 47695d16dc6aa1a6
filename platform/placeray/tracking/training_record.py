"""What a person looks for in a training run: resolved configuration, manifest of the data, curves, system metrics."""

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from placeray import storage
from placeray.tracking.runs import Run

History = Sequence[Mapping[str, float]]

# Metric of the history -> what its panel says; recalls follow below them, one panel per validation set.
_PANELS = {
    "train/loss": "loss, mean of the epoch",
    "train/lr": "learning rate, last step",
    "train/pairs_per_step": "mined pairs per step",
    "train/photos_per_s": "photos per second",
    "train/waiting_share": "share of time waiting for data",
}


@contextmanager
def system_metrics(run: Run, sampling_interval_s: float = 10.0) -> Iterator[None]:
    """Processor, memory, disk and network of the driver's machine as `system/...` metrics while the block runs."""
    if run.id is None:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.id, sampling_interval=sampling_interval_s, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def record_training(run: Run, config: Mapping[str, Any], places_manifest: str, history: History) -> None:
    """Keep `config.yaml`, `data_manifest.json` and `curves.png` with a run.

    Args:
        config:          the resolved configuration of the job.
        places_manifest: uri of the manifest of the places that were trained on.
        history:         one entry per epoch, as in the checkpoint card.
    """
    if run.id is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "config.yaml": yaml.safe_dump(dict(config), sort_keys=False).encode(),
            "data_manifest.json": storage.read_bytes(places_manifest),
            "curves.png": curves(history),
        }
        for name, data in files.items():
            path = Path(folder) / name
            path.write_bytes(data)
            run.log_file(str(path))


def curves(history: History) -> bytes:
    """PNG of a panel per figure over the epochs; recalls of one validation set share a panel."""
    from matplotlib.figure import Figure

    panels = {words: [name] for name, words in _PANELS.items()} | _recall_panels(history)
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    for number, (words, names) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, 2, number + 1)
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if name in row]
            epochs, values = [at for at, _ in points], [value for _, value in points]
            axes.plot(epochs, values, marker=".", label=name.split("/", 1)[-1])
        axes.set_title(words, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _recall_panels(history: History) -> dict[str, list[str]]:
    """`recall on <set>` -> its metrics at 1 and 5."""
    names = sorted(
        {name for row in history for name in row if name.endswith(("/recall_at_1", "/recall_at_5"))}
    )
    sets = sorted({name.split("/", 1)[0] for name in names})
    return {f"recall on {item}": [name for name in names if name.startswith(f"{item}/")] for item in sets}
