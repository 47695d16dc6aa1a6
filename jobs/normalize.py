"""Bring raw data sets, or your own photos, into the one form that all other jobs read.

    python jobs/normalize.py --config jobs/configs/normalize/toy.yaml

Writes images/, places/ and rejects/ below `output`. The same command continues an interrupted run, and does
nothing when the output is complete.
"""

from placeray.cluster.normalizing import normalize
from placeray.config import parse_job, run_main
from placeray.jobspecs.normalize import NormalizeJob


def main() -> None:
    job = parse_job(NormalizeJob, __doc__)
    report = normalize(job.normalize, job.output, num_workers=job.num_workers, num_cpus=job.cpus_per_worker)
    print(report.line())


if __name__ == "__main__":
    run_main(main)
