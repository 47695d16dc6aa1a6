"""The files of a sweep: its pictures and its page, on disk and with the parent run."""

from collections.abc import Sequence

from placeray import storage
from placeray.sweep.config import Sweep
from placeray.sweep.ledger import Trial
from placeray.sweep.objectives import best_trial
from placeray.sweep.page import SweepPage, render_sweep_page
from placeray.sweep.pictures import draw_pictures
from placeray.tracking.code_version import code_version
from placeray.tracking.sweeps import SweepRuns

PAGE_FILE = "report.html"


def keep_files(sweep: Sweep, trials: Sequence[Trial], runs: SweepRuns, data_fingerprint: str) -> str:
    """Write pictures and page into the sweep's folder and keep copies with the parent run; where the page lies."""
    pictures = draw_pictures(sweep.space, trials)
    for name, data in pictures.items():
        uri = storage.join(sweep.output, "pictures", name)
        storage.write_bytes(uri, data)
        runs.parent.log_file(uri)
    best = best_trial(list(trials))
    facts = {
        "data": f"{sweep.normalized} (fingerprint {data_fingerprint})",
        "code": f"placeray {code_version()}",
        "best checkpoint": f"{best.checkpoint} (model {best.model_id})" if best else "none",
        "search": f"{sweep.search.model_dump_json()}, at most {sweep.trials} trials, {sweep.pack} in a pack",
        "early stopping": sweep.early_stopping.model_dump_json() if sweep.early_stopping else "none",
        "model": sweep.model.model_dump_json(),
        "training": sweep.train.model_dump_json(),
        "tracking run": runs.parent.id or "not tracked",
    }
    uri = storage.join(sweep.output, PAGE_FILE)
    storage.write_text(uri, render_sweep_page(SweepPage("placeray sweep", sweep, trials, pictures, facts)))
    runs.parent.log_file(uri)
    if best is not None:
        figures = {"best/score": best.score or 0.0, "best/trial": float(best.number)}
        runs.parent.log(figures)
    return uri
