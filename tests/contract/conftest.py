"""What several contract suites share: the tiny model, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, a byte-level BPE tokenizer and a ChatML template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))
