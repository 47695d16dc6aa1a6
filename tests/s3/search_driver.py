"""`python search_driver.py '{"map": ..., "queries": ..., "output": ..., "caches": ...}'`: the search job on a Ray of
two machines of one CPU, whose copies of maps lie in `<caches>/one` and `<caches>/two`.
"""

import json
import sys

import ray
import ray.data
from ray.cluster_utils import Cluster

from placeray.cluster.searching import search_many
from placeray.retrieval.many import SearchConfig


def main() -> None:
    given = json.loads(sys.argv[1])
    one, two = (
        {
            "num_cpus": 1,
            "object_store_memory": 100 * 1024**2,
            "env_vars": {"PLACERAY_CACHE": f"{given['caches']}/{machine}"},
        }
        for machine in ("one", "two")
    )
    cluster = Cluster(initialize_head=True, head_node_args={**one, "include_dashboard": False})
    cluster.add_node(**two)
    ray.init(address=cluster.address, log_to_driver=False)
    # Eight parts take no time: the first worker must not be done with all before the second one stands.
    ray.data.DataContext.get_current().wait_for_min_actors_s = 120
    try:
        search_many(SearchConfig(), given["queries"], given["map"], given["output"], num_workers=2)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
