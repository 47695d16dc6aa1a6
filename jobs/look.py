"""Look at normalized data sets: counts, maps, samples, refused inputs, and training photos near evaluation photos.

    python jobs/look.py --config jobs/configs/look/toy.yaml

Prints tables and writes page.html, overview.json and leakage.csv below `output`; draws nothing when they are
there for the same inputs.
"""

import time

from placeray.config import parse_job, run_main
from placeray.jobspecs.look import LookJob
from placeray.overview.console import print_overview
from placeray.overview.look import look


def main() -> None:
    job, started = parse_job(LookJob, __doc__), time.monotonic()
    outcome = look(job.look, job.output)
    overview = outcome.overview
    print_overview(overview)
    did = "already finished:" if outcome.already_finished else "drew"
    print(
        f"look: {did} {outcome.page}: {overview.total('kept')} photos of {len(overview.sources)} sources, "
        f"{overview.total('places')} places, {len(overview.leaks)} of {overview.pairs_compared} pairs of sets leak, "
        f"in {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    run_main(main)
