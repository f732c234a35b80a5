"""One training stage as data: its packs, its optimiser steps, and the loss of a pack as a share of its step.

Every rank makes the same stage from the same table, so all of them know every step's weights without asking.

Letters: L log-probs of a pack, B its pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from safer_ray.backends.base import StepReport, TrainTask
from safer_ray.backends.checkpoint import Included, included_stage
from safer_ray.core.losses import PairLogps, erpo_loss, pair_weights, sft_loss
from safer_ray.core.packing import Pack, build_trees, pack, trees_of_examples
from safer_ray.core.step_plan import StepPlan, plan_steps
from safer_ray.errors import LearnerError
from safer_ray.records import StepPair, TraceExample
from safer_ray.tables import from_table, read_table

_FIGURES = ("loss", "chosen_logp", "chosen_tokens", "margin", "right", "pairs")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """What ``begin`` plans. ``weights`` is the total loss weight of each step, over all its packs and ranks.

    ``included`` is what a checkpoint says of the stage once its steps are done.
    """

    task: TrainTask
    packs: tuple[Pack, ...]
    plan: tuple[StepPlan, ...]
    weights: tuple[float, ...]
    included: Included
    reference_L: dict[int, torch.Tensor] = field(default_factory=dict)
    """ERPO: per pack the reference log-probs ``[L]``, filled once."""

    @property
    def steps(self) -> int:
        """How many optimiser steps the stage has."""
        return len(self.plan)

    def tokens(self, step: int) -> int:
        """Packed tokens of a step over all ranks."""
        return sum(self.packs[index].tokens for index in self.plan[step].packs)


def make_stage(task: TrainTask, *, ranks: int) -> Stage:
    """Read the stage's table and plan it.

    Raises:
        DataError: if the table cannot be read or is not of the task's kind.
        LearnerError: if it has no rows.
    """
    table = read_table(Path(task.data_path))
    optim = task.optim
    if task.kind == "sft":
        examples = from_table(table, TraceExample)
        ids = [example.example_id for example in examples]
        terms = task.loss
        trees = trees_of_examples(
            examples, dict(terms.step_weights), terms.decision_weight, token_budget=optim.pack_tokens
        )
    else:
        pairs = from_table(table, StepPair)
        ids = [pair.pair_id for pair in pairs]
        trees = build_trees(pairs, token_budget=optim.pack_tokens)
    if not trees:
        raise LearnerError(f"stage {task.stage}: {task.data_path} has no rows, so there is nothing to train on")
    packs = pack(trees, optim.pack_tokens)
    plan = plan_steps(packs, ranks=ranks, tokens_per_step=optim.tokens_per_step, epochs=optim.epochs, seed=task.seed)
    weight_of = [pack_weight(task, row) for row in packs]
    return Stage(
        task=task,
        packs=tuple(packs),
        plan=tuple(plan),
        weights=tuple(sum(weight_of[index] for index in step.packs) for step in plan),
        included=included_stage(task, ids, steps=len(plan)),
    )


def pack_weight(task: TrainTask, row: Pack) -> float:
    """Return what a pack's loss is a sum over: completion tokens (SFT), or weighted pairs (ERPO)."""
    if task.kind == "sft":
        return float(row.weight_L.sum())
    return sum(pair_weights([pair.prompt_pairs for pair in row.pairs], task.loss.prompt_weighting))


def pack_loss(stage: Stage, index: int, logps_L: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a pack's summed loss, with gradient, and its figures: sums that ranks and packs can add."""
    row = stage.packs[index]
    if stage.task.kind == "sft":
        loss, _ = sft_loss(logps_L, torch.from_numpy(row.weight_L).to(logps_L))
        return loss, _figures(loss=loss.detach())
    pairs = pair_logps(row, logps_L, stage.reference_L[index].to(logps_L))
    out = erpo_loss(pairs, stage.task.loss)
    return out.loss, _figures(
        loss=out.loss.detach(),
        chosen_logp=pairs.chosen_B.detach().sum(),
        chosen_tokens=pairs.chosen_tokens_B.sum(),
        margin=out.margin_B.sum(),
        right=(out.margin_B > 0).sum(),
        pairs=len(row.pairs),
    )


def _figures(**values: torch.Tensor | float) -> torch.Tensor:
    return torch.tensor([float(values.get(name, 0.0)) for name in _FIGURES], dtype=torch.float64)


def pair_logps(row: Pack, logps_L: torch.Tensor, reference_L: torch.Tensor) -> PairLogps:
    """Return the log-probs of a row's pairs under the policy, with gradient, and under the reference."""
    chosen, rejected = [p.chosen_L for p in row.pairs], [p.rejected_L for p in row.pairs]

    def count_B(spans: list[np.ndarray]) -> torch.Tensor:
        return logps_L.new_tensor([len(span) for span in spans])

    return PairLogps(
        chosen_B=span_sums(logps_L, chosen),
        rejected_B=span_sums(logps_L, rejected),
        ref_chosen_B=span_sums(reference_L, chosen),
        ref_rejected_B=span_sums(reference_L, rejected),
        chosen_tokens_B=count_B(chosen),
        rejected_tokens_B=count_B(rejected),
        prompt_pairs_B=torch.tensor([pair.prompt_pairs for pair in row.pairs]),
        axes=tuple(pair.axis for pair in row.pairs),
        kinds=tuple(pair.step_kind for pair in row.pairs),
    )


def span_sums(values_L: torch.Tensor, spans: list[np.ndarray]) -> torch.Tensor:
    """Sum ``values_L`` over each of B index spans, in one gather and one scatter."""
    gathered = values_L[torch.from_numpy(np.concatenate(spans)).to(values_L.device)]
    owner = torch.repeat_interleave(torch.tensor([len(span) for span in spans])).to(values_L.device)
    return values_L.new_zeros(len(spans)).index_add(0, owner, gathered)


def report(
    stage: Stage, step: int, figures: torch.Tensor, *, grad_norm: float, lr: float, seconds: float
) -> StepReport:
    """Return the report of optimiser step ``step`` (from 0) from figures summed over packs and ranks."""
    sums = dict(zip(_FIGURES, figures.tolist(), strict=True))
    pairs = sums["pairs"]
    return StepReport(
        step=step + 1,
        steps=stage.steps,
        loss=sums["loss"] / stage.weights[step],
        grad_norm=grad_norm,
        lr=lr,
        tokens=stage.tokens(step),
        seconds=seconds,
        chosen_logp=sums["chosen_logp"] / sums["chosen_tokens"] if pairs else float("nan"),
        margin=sums["margin"] / pairs if pairs else float("nan"),
        accuracy=sums["right"] / pairs if pairs else float("nan"),
    )


__all__ = ["Stage", "make_stage", "pack_loss", "pack_weight", "pair_logps", "report", "span_sums"]
