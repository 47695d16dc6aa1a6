"""What a second run of a finished path costs: draw, normalize, embed and index a small city twice.

`rerun_vs_first` is the wall time of the second run over the first, both in one process with Ray already up.
"""

import contextlib
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

from measure import finish, say

from placeray.cluster.parts import ensure_ray

JOBS = Path(__file__).resolve().parents[1] / "jobs"
CITY = ["output=runs/toy/city", "num_workers=2", "city.evaluation={places: 60, distractor_places: 40}"]
DESCRIBED = ["checkpoint=runs/toy/checkpoints/untrained"]
STEPS: list[tuple[str, str, list[str]]] = [
    ("draw_city", "tiny", CITY),
    ("normalize", "toy", []),
    ("untrained", "toy", []),
    ("embed", "toy_database", DESCRIBED),
    ("embed", "toy_queries", DESCRIBED),
    ("index", "toy", []),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        os.environ["PLACERAY_ROOT"] = root
        ensure_ray()
        first = {name: run(*step) for step in STEPS for name in ["/".join(step[:2])]}
        second = {name: run(*step) for step in STEPS for name in ["/".join(step[:2])]}
    for name, seconds in first.items():
        say(f"{name}: {seconds:.2f} s, again {second[name]:.3f} s")
    ratios = {"rerun_vs_first": sum(second.values()) / sum(first.values())}
    finish("demo", ratios, {"rerun_vs_first": "<= 0.1"}, first_s=rounded(first), second_s=rounded(second))


def run(script: str, config: str, values: list[str]) -> float:
    """Seconds of one job script, run as its command line would; what it prints goes to stderr."""
    sys.argv = [f"{script}.py", "--config", str(JOBS / "configs" / script / f"{config}.yaml")]
    sys.argv += [part for value in values for part in ("--set", value)]
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        runpy.run_path(str(JOBS / f"{script}.py"), run_name="__main__")
    return time.perf_counter() - started


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


if __name__ == "__main__":
    main()
