"""cluster.yaml is a configuration that Ray's own autoscaler accepts, and its limits make sense."""

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray")


@pytest.fixture
def cluster(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((repository / "cluster.yaml").read_text())
    return loaded


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_an_unknown_key_is_refused(cluster: dict[str, Any]) -> None:
    """The check above can fail: the same call refuses a misspelt key."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(cluster | {"max_wrokers": 1}))


def test_limits_that_ray_does_not_check(cluster: dict[str, Any]) -> None:
    assert cluster["provider"]["region"]
    workers = {
        name: kind
        for name, kind in cluster["available_node_types"].items()
        if name != cluster["head_node_type"]
    }
    for kind in workers.values():
        assert 0 <= kind["min_workers"] <= kind["max_workers"]
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"]


def test_image_and_package_agree_on_ray(cluster: dict[str, Any], repository: Path) -> None:
    pinned = [
        line for line in (repository / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
    ]
    assert pinned[0].removeprefix("ray==") in cluster["docker"]["image"]
