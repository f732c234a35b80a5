"""What several unit suites share: one finished run, carried out once."""

from __future__ import annotations

import pytest
from local_run import LocalRun, carry_out, prepared


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    """A whole run on the fakes. Read it; to change it, carry out one of your own."""
    folder = tmp_path_factory.mktemp("finished")
    return carry_out(prepared(folder), folder / "run")
