"""A Ray cluster on this machine: a head without cores and two nodes with one core each, until standard input ends.

Prints a line of JSON: the address, and the process number of each node.
"""

import json
import sys

from ray.cluster_utils import Cluster

SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    nodes = [cluster.add_node(num_cpus=1, **SMALL) for _ in range(2)]
    cluster.wait_for_nodes()
    pids = [node.all_processes["raylet"][0].process.pid for node in nodes]
    print(json.dumps({"address": cluster.address, "nodes": pids}), flush=True)
    sys.stdin.read()
    cluster.shutdown()
