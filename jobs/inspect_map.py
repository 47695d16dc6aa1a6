"""Say what a map consists of, and how well and fast it finds its own photos.

    python jobs/inspect_map.py --config jobs/configs/inspect_map/toy.yaml
    python jobs/inspect_map.py --config jobs/configs/inspect_map/toy.yaml --set check.check_queries=0 --set format=json

Prints tables, or JSON on stdout; the closing line goes to stderr then. Changes nothing.
"""

import json
import sys

from placeray.config import parse_job, run_main
from placeray.jobspecs.inspect_map import InspectMapJob
from placeray.retrieval.inspect_console import closing_line, print_map
from placeray.retrieval.inspect_map import facts_of, verify
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.self_check import check_map


def main() -> None:
    job = parse_job(InspectMapJob, __doc__)
    with PlaceMap.open(job.map, version=job.version, num_threads=job.num_threads) as place_map:
        verified = verify(place_map) if job.verify else None
        facts, check = facts_of(place_map), check_map(place_map, job.check)
    if job.format == "json":
        print(json.dumps({**facts, "check": check, "verified_bytes": verified}, indent=2))
    else:
        print_map(facts, check)
        if verified is not None:
            print(f"verified: all {verified / 1e6:.1f} MB have the bytes they were written with")
    print(closing_line(facts, check), file=sys.stderr if job.format == "json" else sys.stdout)


if __name__ == "__main__":
    run_main(main)
