from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pybatch
from pybatch.machine.ray_cluster import OBJECT_STORE


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A real Ray cluster of two machines with one processor each, which are processes of this one."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'pybatch[ray]'")
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(pybatch.__file__).parents[1]))  # what is tested, for workers too
        cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **machine})
        cluster.add_node(**machine)
        yield cluster
        cluster.shutdown()
