"""One local cluster for the whole tier, and the undisturbed run that disturbed ones are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tiny_runs import Watched, watched_run

from safer_ray.cluster.session import ray_session


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[None]:
    """A Ray cluster that this process has joined, started the way a run starts one; runs then join it, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(None, object_store_mib=128):
            yield


@pytest.fixture(scope="session")
def whole(local_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The tiny job as it ships, run to its end."""
    return watched_run(tmp_path_factory.mktemp("whole"))
