"""Run by tests in an interpreter of its own: load a registered model, describe photos, save what it says.

python describe_bare.py MODEL PHOTOS.npz OUT.npz [ALLOWED.json]

With a list of top-level modules, everything else that is installed cannot be imported, as if it were not there.
"""

import importlib.machinery
import json
import sys
from pathlib import Path


class OnlyAllowed:
    """The normal finder, blind for modules that are installed and not allowed, and for placeray but the model's."""

    def __init__(self, allowed, installed, model):
        self.hidden, self.model = set(installed) - set(allowed) - {"placeray"}, model

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            return None
        if name == "placeray":
            path = [entry for entry in sys.path if entry.startswith(self.model)]
        return importlib.machinery.PathFinder.find_spec(name, path, target)

    def find_distributions(self, *arguments, **options):
        return importlib.machinery.PathFinder.find_distributions(*arguments, **options)

    def invalidate_caches(self):
        importlib.machinery.PathFinder.invalidate_caches()


def hide(allowed, model):
    from importlib.metadata import packages_distributions

    finder = OnlyAllowed(allowed, packages_distributions(), model)
    sys.meta_path[:] = [
        finder if item is importlib.machinery.PathFinder else item
        for item in sys.meta_path
        if item is importlib.machinery.PathFinder or "_frozen_importlib" in repr(item)
    ]


def main(model, photos, output, allowed=None):
    if allowed:
        hide(json.loads(Path(allowed).read_text()), model)
    for absent in ("placeray", "ray"):
        try:
            __import__(absent)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{absent} can be imported: this is no bare environment")
    import mlflow
    import numpy as np
    import pandas as pd

    given = np.load(photos)
    table = pd.DataFrame({"image": [given[name].tobytes() for name in sorted(given.files)]})
    answer = mlflow.pyfunc.load_model(model).predict(table)
    import placeray

    assert Path(placeray.__file__).is_relative_to(Path(model).resolve()), placeray.__file__
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    np.savez(
        output,
        float=np.stack(list(answer["descriptor"])),
        codes=np.frombuffer(b"".join(answer["code"]), np.uint8),
        modules=modules,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
