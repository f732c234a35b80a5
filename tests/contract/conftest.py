"""What several contract suites share: the tiny model, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from tiny_model import make_tiny_model

settings.register_profile("no clock", deadline=None)  # time is measured in benchmarks, never asserted
settings.load_profile("no clock")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, a byte-level BPE tokenizer and a ChatML template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))
