"""The whole path in one command: draw a city, normalize, train, embed, index, evaluate, localize.

    python jobs/demo.py

Every step is one of the other job scripts with its toy config, run here one after the other in one process, so
that Ray starts once. Each can be run alone by the line printed before it. A finished step is not done again.
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
from placeray.jobspecs.demo import DemoJob

JOBS = Path(__file__).resolve().parent
BEFORE = "runs/toy/untrained"  # descriptors and map of the model before training
UNTRAINED = "checkpoint=runs/toy/checkpoints/untrained"
MAP_OF_BEFORE = [f"descriptors={BEFORE}/descriptors/database", f"output={BEFORE}/map"]

# What a reader is told, the script and its config, values that differ from the config.
STEPS: list[tuple[str, str, list[str]]] = [
    ("Draw a small city in the raw layouts of the real data sets", "draw_city toy", []),
    ("Normalize the raw sets into places, photos and rejects", "normalize toy", []),
    ("Keep the model as it is before training", "untrained toy", []),
    ("Train the float descriptor", "train toy", []),
    ("Train the binary code beside it", "train toy_hash", []),
    ("Describe the map, trained", "embed toy_database", []),
    ("Describe the queries, trained", "embed toy_queries", []),
    (
        "Describe the map, untrained",
        "embed toy_database",
        [UNTRAINED, f"output={BEFORE}/descriptors/database"],
    ),
    (
        "Describe the queries, untrained",
        "embed toy_queries",
        [UNTRAINED, f"output={BEFORE}/descriptors/queries"],
    ),
    ("Index the map, trained", "index toy", []),
    ("Index the map, untrained", "index toy", MAP_OF_BEFORE),
    ("Evaluate on held-out places, trained against untrained", "evaluate toy", []),
    ("Say where six photos were taken", "localize toy", []),
]


def main() -> None:
    job, started = parse_job(DemoJob, __doc__), time.monotonic()
    if job.root is not None:
        os.environ["PLACERAY_ROOT"] = storage.resolve(job.root)
    for number, (title, command, values) in enumerate(STEPS, start=1):
        name, config = command.split()
        changed = [*values, *backbone_values(job, name)]
        run_step(f"{number}/{len(STEPS)} {title}", name, config, changed)
    print("\n" + "=" * 100)
    print_summary("runs/toy/report")
    page = storage.resolve("runs/toy/report/page.html")
    print(f"See it all on one page: {page}\nThe whole demo took {time.monotonic() - started:.0f} s.")


def backbone_values(job: DemoJob, script: str) -> list[str]:
    """The overrides that put another backbone into the steps that build a model, and say so on the page."""
    if job.backbone is None:
        return []
    if script in ("untrained", "train"):
        return [f"model.backbone={job.backbone.model_dump_json(exclude_none=True)}"]
    note = f"The frozen backbone is {job.backbone.name} with weights {job.backbone.weights or 'drawn at random'}."
    return [f"page.notes={json.dumps([note])}"] if script == "evaluate" else []


def run_step(title: str, name: str, config: str, values: list[str]) -> None:
    """Run one job script as its command line would, in this process."""
    file = JOBS / "configs" / name / f"{config}.yaml"
    arguments = ["--config", str(file), *(part for value in values for part in ("--set", value))]
    shown = shlex.join(
        ["python", f"jobs/{name}.py", "--config", f"jobs/configs/{name}/{config}.yaml", *arguments[2:]]
    )
    print(f"\n== {title}\n$ {shown}", flush=True)
    started = time.monotonic()
    sys.argv = [str(JOBS / f"{name}.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
    print(f"   ({time.monotonic() - started:.1f} s)", flush=True)


if __name__ == "__main__":
    run_main(main)
