"""Let a challenger replace the champion of a registered model, when it is no worse on the same photos.

    python jobs/promote.py --config jobs/configs/promote/toy.yaml

Both are evaluated; a worse challenger is refused with exit status 1. The alias moves last: an interrupted promotion
leaves the old champion in place, and the same command goes on.
"""

import time

from placeray.cluster.comparing import Contestant, compare
from placeray.cluster.embedding import Workers
from placeray.config import parse_job, run_main
from placeray.evaluation.console import print_recall
from placeray.evaluation.verdict import judge
from placeray.jobspecs.promote import PromoteJob
from placeray.model.checkpoint import identify
from placeray.tracking.promotion import PromotionError, Side, open_contest
from placeray.tracking.runs import tracked_run


def main() -> None:
    job, started = parse_job(PromoteJob, __doc__), time.monotonic()
    contest = open_contest(job.name, job.challenger, job.champion, job.tracking)
    challenger, champion = contest.challenger, contest.champion
    if contest.decided:
        print(
            f"promote: already finished: {challenger.version} is models:/{job.name}@{job.champion}; nothing to do"
        )
        return
    sides = [("champion", champion)] if champion else []
    with tracked_run(
        f"promote-{job.name}", job.model_dump(mode="json"), job.tracking, resume_key=contest.key
    ) as run:
        outcome = compare(
            [contestant(role, side) for role, side in [*sides, ("challenger", challenger)]],
            job.evaluate_on,
            job.output,
            embed_config=job.embed,
            measure=job.measure,
            workers=Workers(job.num_workers, job.cpus_per_worker, job.gpus_per_worker),
        )
        print_recall(outcome.reports)
        verdict = judge(outcome.reports[-1], outcome.reports[0] if champion else None, job.judge)
        run.log(verdict.figures)
        for file in outcome.files:
            run.log_file(file)
        contest.record(verdict, run.id)
    if not verdict.passed:
        raise PromotionError(f"{challenger.version} is not promoted: {verdict.sentence}; see {outcome.page}")
    contest.promote()
    before = f"version {champion.version.version}" if champion else "nobody"
    print(
        f"promote: {challenger.version} is now models:/{job.name}@{job.champion} ({before} before): "
        f"{verdict.sentence}; wrote {outcome.page} in {time.monotonic() - started:.0f} s"
    )


def contestant(role: str, side: Side) -> Contestant:
    """One side of the comparison, labelled such as `champion, version 2`."""
    model_id, preprocessing = identify(side.checkpoint)
    label = f"{role}, version {side.version.version}"
    return Contestant(label, side.checkpoint, model_id, preprocessing, side.version.document)


if __name__ == "__main__":
    run_main(main)
