"""Run by tests in a process of its own: the promote job, killed (SIGKILL) when it calls one function.

    python killed_promotion.py FUNCTION jobs/promote.py --set key=value ...

The parts of the job run in this process, without Ray.
"""

import importlib
import os
import runpy
import signal
import sys


def run_parts(parts, worker_cls, worker_kwargs, *, done, **options):
    pending = [part for part in parts if done(part) is None]
    worker = worker_cls(**worker_kwargs) if pending else None
    return [worker(part) if part in pending else done(part) for part in parts]


def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    function, sys.argv = sys.argv[1], sys.argv[2:]
    for module in ("embedding", "indexing"):
        importlib.import_module(f"placeray.cluster.{module}").run_parts = run_parts
    owner, _, name = function.rpartition(".")
    module, _, cls = owner.partition(":")
    place = importlib.import_module(module)
    setattr(getattr(place, cls) if cls else place, name, die)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
