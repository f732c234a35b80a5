"""What several unit suites share: one finished run, carried out once, and how many examples a law is tried on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from local_run import LocalRun, carry_out, prepared

# The machine may be busy, so no example has a deadline. 'make laws' tries the laws that set no number of their own
# on many more examples than anyone would wait for before a commit.
settings.register_profile("quick", max_examples=100, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("SAFER_RAY_LAWS", "quick"))


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Let files be written without fsync: no test here cuts the power, and the tests' runs ask 6,000 times for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    """A whole run on the fakes. Read it; to change it, carry out one of your own."""
    folder = tmp_path_factory.mktemp("finished")
    return carry_out(prepared(folder), folder / "run")
