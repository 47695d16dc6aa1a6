"""Search a map with many described photos.

    python jobs/search.py --config jobs/configs/search/toy.yaml
    python jobs/search.py --config jobs/configs/search/toy.yaml --set search.near_m=200 --set calibration=null \\
        --set output=runs/toy/answers_near

Writes parquet files of answers. The same command continues an interrupted run, and does nothing when the output is
complete.
"""

from placeray.cluster.searching import search_many
from placeray.config import parse_job, run_main
from placeray.jobspecs.search import SearchJob


def main() -> None:
    job = parse_job(SearchJob, __doc__)
    report = search_many(
        job.search,
        job.queries,
        job.map,
        job.output,
        version=job.version,
        calibration=job.calibration,
        num_workers=job.num_workers,
        num_cpus=job.cpus_per_worker,
    )
    print(report.line())


if __name__ == "__main__":
    run_main(main)
