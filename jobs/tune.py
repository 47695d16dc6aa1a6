"""Search a space of training configurations; the result is the checkpoint of the best trial and a page about all.

    python jobs/tune.py --config jobs/configs/tune/toy.yaml

The same command goes on where a killed sweep stopped; with a larger `trials` or `time_limit_s` it adds trials.
"""

from placeray.cluster.tuning import SweepReport, finished_sweep, located, sweep_key, tune_sweep, write_summary
from placeray.config import parse_job, run_main
from placeray.datasets.reading import places_fingerprint
from placeray.jobspecs.tune import TuneJob
from placeray.sweep.objectives import recall_at_1
from placeray.tracking.sweep_files import keep_files
from placeray.tracking.sweeps import sweep_runs


def main() -> None:
    job = parse_job(TuneJob, __doc__)
    sweep = located(job.sweep)
    finished = finished_sweep(sweep)
    if finished is not None:
        print(f"tune: already finished: {summary(finished)}; nothing to do")
        return
    version, data = None, places_fingerprint(sweep.normalized)
    with sweep_runs(
        "sweep", job.model_dump(mode="json"), job.tracking, key=sweep_key(sweep), data_fingerprint=data
    ) as runs:
        report = tune_sweep(sweep, job.workers, runs)
        page = keep_files(sweep, report.trials, runs, data)
        if job.register_as is not None:
            version = runs.parent.register_model(report.best.checkpoint, job.register_as)
    write_summary(sweep, report)
    registered = f", registered as {job.register_as} version {version}" if version else ""
    print(f"tune: {summary(report)}{registered}; page {page}; {report.seconds:.0f} s")


def summary(report: SweepReport) -> str:
    """`8 trials (3 finished, 4 stopped early, 1 failed); best is trial 5, R@1 72.0 %, checkpoint <folder>`"""
    states = [trial.state for trial in report.trials]
    names = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "waiting": "not begun"}
    counts = ", ".join(f"{states.count(state)} {name}" for state, name in names.items() if state in states)
    best = report.best
    recall = 100 * (recall_at_1(best) or 0.0)
    return (
        f"{len(states)} trials ({counts}); best is trial {best.number}, R@1 {recall:.1f} %, "
        f"checkpoint {best.checkpoint} (model {best.model_id[:12]})"
    )


if __name__ == "__main__":
    run_main(main)
