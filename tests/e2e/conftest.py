"""One real run, shared by the whole tier."""

from __future__ import annotations

import pytest
from real_runs import RealRun, real_run_at


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> RealRun:
    """The whole loop on real engines, with a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        return real_run_at(tmp_path_factory.mktemp("real"))
