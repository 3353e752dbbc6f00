"""A real Ray cluster of three nodes on this machine: a head without work, and two nodes of one core."""

import random
from typing import Any

from tests.cluster.slurm import children_of, kill

NODE = {"object_store_memory": 100_000_000}


class RayCluster:
    """As a context manager it is up inside, and gone afterwards."""

    def __init__(self) -> None:
        self.cluster: Any = None

    @property
    def address(self) -> str:
        """For ray.init."""
        return str(self.cluster.address)

    def __enter__(self) -> "RayCluster":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()

    def start(self) -> None:
        """Three nodes."""
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, **NODE}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self.add_node()
        self.cluster.wait_for_nodes()

    def add_node(self) -> None:
        """One more, as an autoscaler would."""
        self.cluster.add_node(num_cpus=1, **NODE)

    def kill_node(self, draw: random.Random) -> str:
        """SIGKILL to a node and all that runs on it."""
        node = draw.choice(sorted(self.cluster.worker_nodes, key=lambda node: node.unique_id))
        for process in node.all_processes["raylet"]:
            for child in children_of(process.process.pid):
                kill(child)
        self.cluster.remove_node(node, allow_graceful=False)
        return f"node {node.unique_id[:8]}"

    def kill_head(self) -> None:
        """SIGKILL to the head, its scheduler and all nodes, which do not outlive it."""
        for node in [*self.cluster.worker_nodes, self.cluster.head_node]:
            for process in node.all_processes["raylet"]:
                for child in children_of(process.process.pid):
                    kill(child)
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
