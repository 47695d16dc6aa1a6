"""Keep a map current: add, replace and remove photos, put shards in order, delete old versions.

    python jobs/update_map.py --config jobs/configs/update_map/toy.yaml

Each change is a new version that shares what has not changed; whoever has the old one open keeps it. The same command
continues an interrupted update, and does nothing when it was the last one.
"""

from placeray.cluster.updating import update_map
from placeray.config import parse_job, run_main
from placeray.jobspecs.update_map import UpdateMapJob
from placeray.retrieval.compact import compact
from placeray.retrieval.prune import prune


def main() -> None:
    job = parse_job(UpdateMapJob, __doc__)
    if job.descriptors is not None or job.update.remove or job.update.remove_file is not None:
        _, line = update_map(
            job.update, job.map, job.descriptors, num_workers=job.num_workers, num_cpus=job.cpus_per_worker
        )
        print(line)
    if job.compact:
        manifest = compact(job.map, max_dead=job.max_dead, max_overlap=job.max_overlap)
        print(f"compact: {manifest['version']} has {manifest['counts']['shards']} shards")
    if job.keep_versions is not None:
        done = prune(job.map, job.keep_versions)
        print(
            f"prune: deleted {len(done.versions)} versions and {len(done.files)} files or folders of shards"
        )


if __name__ == "__main__":
    run_main(main)
