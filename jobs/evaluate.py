"""Evaluate a map with queries of known position: recall, latency, confidence, and a page that shows it.

    python jobs/evaluate.py --config jobs/configs/evaluate/toy.yaml

Writes report.json and page.html below `output`; does nothing when they are there for the same inputs.
"""

import time

from placeray.config import parse_job, run_main
from placeray.evaluation.console import print_recall
from placeray.evaluation.run import run_evaluation
from placeray.jobspecs.evaluate import EvaluateJob
from placeray.retrieval.plan import check_made_by
from placeray.tracking.registry import model_id_of
from placeray.tracking.runs import tracked_run


def main() -> None:
    job, started = parse_job(EvaluateJob, __doc__), time.monotonic()
    if job.checkpoint is not None:
        # Map and queries are compared with each other anyway.
        check_made_by(job.system.queries, model_id_of(job.checkpoint, job.tracking), job.checkpoint)
    outcome = run_evaluation(job.benchmark, job.systems, job.page, job.output)
    print_recall(outcome.reports)
    report = outcome.reports[-1]
    if outcome.already_finished:
        print(f"evaluate: already finished: {report.num_queries} queries, {outcome.page}; nothing to do")
        return
    with tracked_run(f"evaluate-{job.system.label}", job.model_dump(mode="json"), job.tracking) as run:
        run.log(report.metrics())
        run.log_file(outcome.page)
    print(
        f"evaluate: read {report.num_queries} queries ({report.num_with_positive} with a right answer) and a "
        f"map of {report.map.photos} photos, wrote {outcome.page} in {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    run_main(main)
