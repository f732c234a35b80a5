"""Twenty optimiser steps, end to end, give the losses they gave when the learner was found right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from learner_runs import GOLDEN, STEPS, losses


@pytest.mark.parametrize("kind", ["sft", "erpo"])
def test_twenty_steps_give_the_golden_losses(kind: Literal["sft", "erpo"], tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[kind]
    assert len(golden) == STEPS
    assert losses(kind, tmp_path) == pytest.approx(golden, rel=1e-3)
