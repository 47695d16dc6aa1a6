"""Train one recipe of SelaVPR++ on normalized data with Ray Train; the result is a checkpoint folder.

    python jobs/train.py --config jobs/configs/train/toy.yaml

The same command goes on where an interrupted run stopped, and says so when there is nothing left to do.
"""

import time

from placeray import storage
from placeray.cluster.training import TrainReport, finished_report, identified, train
from placeray.config import parse_job, run_main
from placeray.datasets.reading import places_folder
from placeray.jobspecs.train import TrainJob
from placeray.model.card import CARD_FILE
from placeray.tracking.registry import locate_checkpoint
from placeray.tracking.runs import tracked_run
from placeray.tracking.training_record import record_training, system_metrics
from placeray.training.run import RunSpec


def main() -> None:
    job = parse_job(TrainJob, __doc__)
    start_from = None if job.start_from is None else locate_checkpoint(job.start_from, job.tracking).uri
    spec = identified(
        RunSpec(
            normalized=job.normalized,
            output=job.output,
            start_from=start_from,
            model=job.model,
            train=job.train,
        )
    )
    finished = finished_report(spec)
    if finished is not None:
        print(f"train: already finished: {summary(finished)}; nothing to do")
        return
    started, version = time.monotonic(), None
    config = job.model_dump(mode="json")
    with (
        tracked_run(f"train-{job.train.recipe}", config, job.tracking, resume_key=spec.key) as run,
        system_metrics(run),
    ):
        report = train(spec, job.workers, run)
        run.log({key.replace("val/", "best/"): value for key, value in report.metrics.items()})
        card = storage.join(report.checkpoint, CARD_FILE)
        run.log_file(card)
        manifest = storage.join(places_folder(job.normalized), storage.MANIFEST)
        record_training(run, config, manifest, storage.read_json(card)["history"])
        if job.register_as is not None:
            version = run.register_model(report.checkpoint, job.register_as)
    registered = f" and model {job.register_as} version {version}" if version else ""
    print(
        f"train: read {report.places} places with {report.photos} photos, trained {report.epochs} epochs, "
        f"wrote {summary(report)}{registered} in {time.monotonic() - started:.0f} s"
    )


def summary(report: TrainReport) -> str:
    """`<folder> (model 1a2b3c4d5e6f; msls-val two-stage R@1 93.1)`"""
    parts = [f"model {report.model_id[:12]}"]
    for key, value in sorted(report.metrics.items()):
        if key.endswith("/recall_at_1"):
            _, name, stage, _ = key.split("/")
            parts.append(f"{name} {stage.replace('_', '-')} R@1 {100 * value:.1f}")
    return f"{report.checkpoint} ({'; '.join(parts)})"


if __name__ == "__main__":
    run_main(main)
