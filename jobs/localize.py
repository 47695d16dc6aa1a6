"""Say where photos were taken: the best matches on a map, an estimated position, and how sure it is.

    python jobs/localize.py --config jobs/configs/localize/toy.yaml
    python jobs/localize.py --config jobs/configs/localize/toy.yaml --set photos=[a.jpg] --set format=json

Prints a table, or JSON on stdout; the closing line goes to stderr then.
"""

import dataclasses
import json
import os
import sys
import time

from placeray.config import parse_job, run_main
from placeray.evaluation.run import load_calibration
from placeray.jobspecs.localize import LocalizeJob
from placeray.localization import Located, find_photos, localize
from placeray.model.checkpoint import load_checkpoint
from placeray.retrieval.place_map import PlaceMap
from placeray.tracking.registry import locate_checkpoint


def main() -> None:
    job, started = parse_job(LocalizeJob, __doc__), time.monotonic()
    found = [photo for source in job.photos for photo in find_photos(source)]
    count = min(job.max_photos or len(found), len(found))
    photos = [found[number * len(found) // count] for number in range(count)]
    model = load_checkpoint(locate_checkpoint(job.checkpoint, job.tracking).uri)
    calibration, note = None, "the map was not evaluated; confidence is unknown"
    if job.calibration is not None:
        calibration, note = load_calibration(job.calibration, model.model_id)
    with PlaceMap.open(job.map, damaged=job.damaged) as place_map:
        for sentence in place_map.damaged:
            print(f"localize: {sentence}", file=sys.stderr)
        located = localize(photos, model, place_map, calibration, job.localize)
        size = place_map.num_live
    if job.format == "json":
        print(json.dumps([dataclasses.asdict(item) for item in located], indent=2))
    else:
        print("\n".join(line for item in located for line in lines_of(item)))
        print(f"confidence: {note}")
    print(
        f"localize: found {len(found)} photos, localized {len(located)} on a map of {size} in "
        f"{time.monotonic() - started:.1f} s",
        file=sys.stderr if job.format == "json" else sys.stdout,
    )


def lines_of(item: Located) -> list[str]:
    """One photo as text: where it was taken, then a line for each match."""
    sure = "unknown" if item.confidence is None else f"{item.confidence:.0%}"
    where = "the map has no positions"
    if item.position is not None:
        spot = item.position
        agree = (
            "one match" if spot.spread_m is None else f"{spot.matches} matches within {spot.spread_m:.0f} m"
        )
        where = f"{spot.lat:.6f}, {spot.lon:.6f} (from {agree})"
    lines = [os.path.basename(item.photo), f"  position {where}   confidence {sure}"]
    lines.append(f"  {'':>4} {'similarity':>10} {'bits':>5} {'lat':>11} {'lon':>12} {'frame':>7}  photo")
    for rank, match in enumerate(item.matches, start=1):
        spot_text = [f"{value:.6f}" if value is not None else "-" for value in (match.lat, match.lon)]
        bits = "-" if match.distance is None else str(match.distance)
        frame = "-" if match.frame is None else str(match.frame)
        lines.append(
            f"  {rank:>4} {match.similarity:>10.3f} {bits:>5} {spot_text[0]:>11} {spot_text[1]:>12} "
            f"{frame:>7}  {os.path.basename(match.source_uri)}"
        )
    return [*lines, ""]


if __name__ == "__main__":
    run_main(main)
