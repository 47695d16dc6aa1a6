"""Copy a map to an object store, or from there to this machine.

    python jobs/copy_map.py --config jobs/configs/copy_map/toy.yaml --set target=s3://my-bucket/maps/toy

Copies what is not there yet: the next version costs what is new in it, and the same command continues an interrupted
copy. Jobs that read a map take `s3://...` too and keep a copy of their own.
"""

from placeray.config import parse_job, run_main
from placeray.jobspecs.copy_map import CopyMapJob
from placeray.retrieval.copy_console import copy_with_bar


def main() -> None:
    job = parse_job(CopyMapJob, __doc__)
    print(copy_with_bar(job.source, job.target, job.version).line())


if __name__ == "__main__":
    run_main(main)
