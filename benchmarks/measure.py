"""What the benchmarks share: alternating timed runs, the machine in words, and the JSON line at the end."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall seconds of each run, taken in turn (A B A B ...) so that drift of the machine hits all alike.

    The first round warms up and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number:
                seconds[name].append(elapsed)
            say(f"round {number}/{rounds} {name}: {elapsed:.3f} s{'' if number else ' (warm-up)'}")
    return {name: statistics.median(values) for name, values in seconds.items()}


def say(line: str) -> None:
    """Progress goes to stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def finish(
    benchmark: str, ratios: Mapping[str, float], targets: Mapping[str, str], **figures: object
) -> None:
    """Print the one JSON object that ends a benchmark. `targets` hold a comparison and a number, such as '>= 2.2'."""
    missed = [name for name, target in targets.items() if name in ratios and not _holds(ratios[name], target)]
    say(f"{benchmark}: " + (f"missed {', '.join(missed)}" if missed else "all targets met"))
    result = {
        "benchmark": benchmark,
        "ratios": {name: round(value, 4) for name, value in ratios.items()},
        "targets": dict(targets),
        "machine": machine(),
    }
    if figures:
        result["figures"] = figures
    print(json.dumps(result), flush=True)


def machine() -> dict[str, object]:
    """Processor, cores and memory of this machine."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "python": platform.python_version(),
    }


def _holds(value: float, target: str) -> bool:
    comparison, number = target.split()
    return value >= float(number) if comparison == ">=" else value <= float(number)
