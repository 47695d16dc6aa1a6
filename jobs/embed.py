"""Describe the photos of a normalized data set with a trained model.

    python jobs/embed.py --config jobs/configs/embed/toy_database.yaml

Writes parquet files of descriptors, and rejects/ for photos that cannot be decoded. The same command continues
an interrupted run, and does nothing when the output is complete.
"""

from placeray.cluster.embedding import Workers, embed
from placeray.config import parse_job, run_main
from placeray.jobspecs.embed import EmbedJob
from placeray.tracking.registry import locate_checkpoint


def main() -> None:
    job = parse_job(EmbedJob, __doc__)
    located = locate_checkpoint(job.checkpoint, job.tracking)
    report = embed(
        job.embed,
        job.normalized,
        located.uri,
        job.output,
        select=job.select,
        preprocess=job.preprocess,
        workers=Workers(job.num_workers, job.cpus_per_worker, job.gpus_per_worker, job.decode_threads),
        registered=located.registered,
    )
    print(report.line())


if __name__ == "__main__":
    run_main(main)
