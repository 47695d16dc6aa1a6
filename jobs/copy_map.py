"""Copy a map to an object store, or from there to this machine.

    python jobs/copy_map.py --config jobs/configs/copy_map/toy.yaml --set target=s3://my-bucket/maps/toy

Copies what is not there yet: the next version costs what is new in it, and the same command continues an interrupted
copy. Jobs that read a map take `s3://...` too and keep a copy of their own.
"""

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from placeray.config import parse_job, run_main
from placeray.jobspecs.copy_map import CopyMapJob
from placeray.retrieval.copies import copy_map


def main() -> None:
    job = parse_job(CopyMapJob, __doc__)
    columns = (TextColumn("copy_map"), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("copy_map", total=None)
        copied = copy_map(
            job.source,
            job.target,
            job.version,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(copied.line())


if __name__ == "__main__":
    run_main(main)
