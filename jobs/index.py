"""Build the map of described photos: sharded binary codes, 8-bit descriptors, a manifest.

    python jobs/index.py --config jobs/configs/index/toy.yaml

The same command continues an interrupted build, and does nothing when the map is there. Other descriptors or
settings make a new version of the map; whoever has the old one open keeps it.
"""

from placeray.cluster.indexing import build_index
from placeray.config import parse_job, run_main
from placeray.jobspecs.index import IndexJob
from placeray.retrieval.plan import check_made_by
from placeray.tracking.registry import model_id_of


def main() -> None:
    job = parse_job(IndexJob, __doc__)
    if job.checkpoint is not None:
        check_made_by(job.descriptors, model_id_of(job.checkpoint, job.tracking), job.checkpoint)
    report = build_index(
        job.index,
        job.descriptors,
        job.output,
        queries=job.queries,
        num_workers=job.num_workers,
        num_cpus=job.cpus_per_worker,
    )
    print(report.line())


if __name__ == "__main__":
    run_main(main)
