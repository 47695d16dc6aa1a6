"""The whole path in one command: draw a city, normalize, train, embed, index, evaluate, localize.

    python jobs/demo.py --config jobs/configs/demo/toy.yaml

Every step is one of the other job scripts, run here one after the other in one process, so that Ray starts once.
Each can be run alone by the line printed before it. A finished step is not done again.
"""

import json
import os
import runpy
import shlex
import sys
import time
from pathlib import Path

from placeray import storage
from placeray.config import parse_job, run_main
from placeray.evaluation.summary import print_summary
from placeray.jobspecs.demo import DemoJob, Step

JOBS = Path(__file__).resolve().parent


def main() -> None:
    job, started = parse_job(DemoJob, __doc__), time.monotonic()
    if job.root is not None:
        os.environ["PLACERAY_ROOT"] = storage.resolve(job.root)
    for number, step in enumerate(job.steps, start=1):
        print(f"\n== {number}/{len(job.steps)} {step.title}")
        run_step(step, [*step.values, *backbone_values(job, step)])
    print("\n" + "=" * 100)
    print_summary(job.report)
    print(f"See it all on one page: {storage.resolve(storage.join(job.report, 'page.html'))}")
    print(f"The whole demo took {time.monotonic() - started:.0f} s.")


def backbone_values(job: DemoJob, step: Step) -> list[str]:
    """The overrides that put another backbone into the steps that build a model, and say so on the page."""
    if job.backbone is None:
        return []
    if step.job in ("untrained", "train"):
        return [f"model.backbone={job.backbone.model_dump_json(exclude_none=True)}"]
    note = f"The frozen backbone is {job.backbone.name}, its weights {job.backbone.weights or 'drawn at random'}."
    return [f"page.notes={json.dumps([note])}"] if step.job == "evaluate" else []


def run_step(step: Step, values: list[str]) -> None:
    """Run one job script as its command line would, in this process."""
    changed = [part for value in values for part in ("--set", value)]
    config = Path("configs") / step.job / f"{step.config}.yaml"
    shown = ["python", f"jobs/{step.job}.py", "--config", f"jobs/{config}", *changed]
    print(f"$ {shlex.join(shown)}", flush=True)
    started = time.monotonic()
    sys.argv = [str(JOBS / f"{step.job}.py"), "--config", str(JOBS / config), *changed]
    runpy.run_path(sys.argv[0], run_name="__main__")
    print(f"   ({time.monotonic() - started:.1f} s)", flush=True)


if __name__ == "__main__":
    run_main(main)
