"""A training driver that tests may kill: `python survival_driver.py '{"folder": ..., "output": ..., ...}'`.

Every step it hears of is a line of `<output>.steps`; its last line of stdout is the result as JSON. With `cluster` it
makes a Ray of two machines and takes the second one away at step `at_step`: `replaced` brings another one, `lost` does
not. The tests also import it for what they share.
"""

import contextlib
import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

STEPS_PER_EPOCH = 4
EPOCHS = 30
CHECKPOINT_EVERY = 3


def load(name: str, file: Path) -> ModuleType:
    """A module of a test folder, by its path."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_data(root: str) -> None:
    """Normalized data of two domains, four batches an epoch; `root` may be in an object store."""
    tiny = load("tiny_normalized", Path(__file__).parents[1] / "unit" / "training" / "tiny_normalized.py")
    tiny.write_normalized(root, {"north": [4, 5, 4, 6, 4, 4, 5, 4], "south": [4, 4, 5, 4, 4, 6, 4, 4]})


def make_spec(normalized: str, output: str) -> Any:
    from placeray.model.backbone import BackboneConfig
    from placeray.model.gem import GemConfig
    from placeray.model.selavpr import ModelConfig
    from placeray.training.config import TrainConfig
    from placeray.training.run import RunSpec

    train = {
        "epochs": EPOCHS, "places_per_batch": 4, "seed": 3, "log_every_s": 0, "preprocess": {"size_px": 28},
        "optimizer": {"lr": 0.003}, "checkpoint_every_steps": CHECKPOINT_EVERY,
        "validation": {"sets": [{"name": "toy-val", "dataset": "toy"}], "every_epochs": 5},
    }  # fmt: skip
    return RunSpec(
        normalized=normalized,
        output=output,
        model=ModelConfig(
            backbone=BackboneConfig(name="toy", embed_dim=64, num_heads=1, depth=1),
            float_head=GemConfig(dim=16),
            conv_start="random",
        ),
        train=TrainConfig.model_validate(train),
    )


class StepFile:
    """Stands for a tracked run: writes the number of every step it is told of."""

    id = None

    def __init__(self, path: str) -> None:
        self.path, self.last = path, 0

    def log(self, metrics: Any, step: int | None = None) -> None:
        if "train/step_loss" in metrics and step is not None:
            self.last = step
            with open(self.path, "a") as file:
                file.write(f"{step}\n")

    def log_file(self, path: str) -> None: ...

    def register_model(self, checkpoint: str, name: str) -> str | None: ...


def main() -> None:
    os.environ.update(RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="15", RAY_AUTH_MODE="disabled")
    given = json.loads(sys.argv[1])
    steps = StepFile(given["steps"])
    with _machines(given, steps):
        report = _train(given, steps)
    print(json.dumps({"model_id": report.model_id, "metrics": report.metrics, "epochs": report.epochs}))


def _train(given: dict[str, Any], steps: StepFile) -> Any:
    from placeray.cluster.training import train
    from placeray.jobspecs.train import WorkersConfig

    spec = make_spec(given["normalized"], given["output"])
    if not given.get("cluster"):
        return train(spec, WorkersConfig.model_validate(given["workers"]), steps)
    answer: list[Any] = []
    thread = threading.Thread(
        target=lambda: answer.append(train(spec, WorkersConfig.model_validate(given["workers"]), steps))
    )
    thread.start()
    _take_a_machine_away(given, steps, thread)  # nodes can be changed in the main thread only
    thread.join()
    return answer[0]


_CLUSTER: list[Any] = []


@contextlib.contextmanager
def _machines(given: dict[str, Any], steps: StepFile) -> Any:
    if not given.get("cluster"):
        yield
        return
    import ray
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    second = cluster.add_node(**size)
    ray.init(address=cluster.address, log_to_driver=False)
    _CLUSTER[:] = [cluster, second, size]
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _take_a_machine_away(given: dict[str, Any], steps: StepFile, training: threading.Thread) -> None:
    cluster, second, size = _CLUSTER
    while steps.last < given["at_step"] and training.is_alive():
        time.sleep(0.02)
    assert training.is_alive(), "training ended before the machine could be taken away"
    cluster.remove_node(second, allow_graceful=False)
    if given["cluster"] == "replaced":
        cluster.add_node(**size)


if __name__ == "__main__":
    main()
