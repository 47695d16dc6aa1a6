"""Draw a toy city in the raw layouts of the real data sets: input of the demo, the tests and the benchmarks.

    python jobs/draw_city.py --config jobs/configs/draw_city/toy.yaml

A finished city is left alone, an interrupted one is continued.
"""

from placeray.config import parse_job, run_main
from placeray.jobspecs.draw_city import DrawCityJob
from placeray.toycity.city import draw_city
from placeray.toycity.progress import photo_progress


def main() -> None:
    job = parse_job(DrawCityJob, __doc__)
    with photo_progress("drawing the toy city") as progress:
        report = draw_city(job.city, job.output, progress, num_workers=job.num_workers)
    layouts = ", ".join(report.layouts)
    if report.already_finished:
        print(f"draw_city: already finished: {report.photos} photos in {layouts} at {report.root}")
    else:
        rate = report.photos / max(report.seconds, 1e-9)
        print(
            f"draw_city: drew {report.photos} photos ({report.faults} planted faults) in {layouts}; "
            f"wrote {report.root} in {report.seconds:.1f} seconds, {rate:.0f} photos/s"
        )


if __name__ == "__main__":
    run_main(main)
