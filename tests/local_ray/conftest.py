"""One cluster for the whole tier, to which tests add nodes, and the undisturbed run that others are compared with."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from tiny_runs import Watched, watched_run

from safer_ray.cluster.session import own_token

STORE_BYTES = 128 * 2**20
# A node that does not answer is dead for Ray after about ten seconds, instead of a minute.
QUICK_TIMEOUT = {
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


@pytest.fixture(scope="session")
def many_nodes() -> Iterator[Cluster]:
    """A cluster of several raylets on this machine, with token authentication, which this process has joined.

    Only its head is there at first; runs of this process join it, too. Whoever adds a node removes it.
    """
    scratch = tempfile.mkdtemp(prefix="r")  # short, because it holds unix sockets
    with pytest.MonkeyPatch.context() as patch, own_token():
        patch.delenv("RAY_ADDRESS", raising=False)
        # Where it notes its address: in a folder of its own that is there, not in the one all users share.
        patch.setenv("RAY_TMPDIR", scratch)
        Path(scratch, "ray").mkdir()
        head = {"num_cpus": 4, "object_store_memory": STORE_BYTES, "include_dashboard": False, "temp_dir": scratch}
        cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": QUICK_TIMEOUT})
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        yield cluster
        ray.shutdown()
        cluster.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="session")
def local_cluster(many_nodes: Cluster) -> None:
    """The same, for tests that need no other node."""


@pytest.fixture(scope="session")
def whole(local_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The tiny job as it ships, run to its end."""
    return watched_run(tmp_path_factory.mktemp("whole"))
