"""A kept batch as tensors: what is noted of a step that failed, and the loss of its packs when it is run again.

Letters: L log-probs of a pack, B its pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from safer_ray.backends.base import RowReport, TrainTask
from safer_ray.backends.failed_batch import FailedBatch, FailedPack, finite
from safer_ray.backends.stage import Stage, pair_logps, span_sums
from safer_ray.core.losses import PairLogps, erpo_loss
from safer_ray.core.packing import Pack, build_trees, join, trees_of_examples
from safer_ray.records import StepPair, TraceExample


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """What a step that failed had come to: its reason, and figures that may be no number."""

    reason: str
    loss: float
    grad_norm: float
    lr: float


def failed_batch(
    stage: Stage, step: int, figures: StepFigures, losses: Mapping[int, float], *, ranks: int
) -> FailedBatch:
    """Return the note of optimiser step ``step`` (from 0); ``losses`` is the summed loss of each of its packs."""
    return FailedBatch(
        stage=stage.task.stage,
        kind=stage.task.kind,
        step=step + 1,
        steps=stage.steps,
        reason=figures.reason,
        loss=finite(figures.loss),
        grad_norm=finite(figures.grad_norm),
        lr=figures.lr,
        weight=stage.weights[step],
        ranks=ranks,
        task=asdict(stage.task),
        packs=tuple(_failed_pack(stage, index, losses[index]) for index in stage.plan[step].packs),
    )


def _failed_pack(stage: Stage, index: int, loss: float) -> FailedPack:
    row = stage.packs[index]
    if not row.pairs:
        return FailedPack(index=index, loss=finite(loss), row_ids=row.example_ids)
    reference_L = stage.reference_L[index]
    chosen_B = span_sums(reference_L, [pair.chosen_L for pair in row.pairs]).tolist()
    rejected_B = span_sums(reference_L, [pair.rejected_L for pair in row.pairs]).tolist()
    return FailedPack(
        index=index,
        loss=finite(loss),
        row_ids=tuple(pair.pair_id for pair in row.pairs),
        references=tuple(zip(chosen_B, rejected_B, strict=True)),
        prompt_pairs=tuple(pair.prompt_pairs for pair in row.pairs),
    )


def packs_again(batch: FailedBatch, rows: Sequence[StepPair] | Sequence[TraceExample]) -> list[Pack]:
    """Return the packs of a kept batch, each of the rows it had, in their order."""
    packs, start = [], 0
    for kept in batch.packs:
        share = rows[start : start + len(kept.row_ids)]
        start += len(share)
        if batch.kind == "sft":
            terms, examples = batch.train_task().loss, [row for row in share if isinstance(row, TraceExample)]
            packs.append(join(trees_of_examples(examples, dict(terms.step_weights), terms.decision_weight)))
            continue
        row = join(build_trees([row for row in share if isinstance(row, StepPair)]))
        counts = dict(zip(kept.row_ids, kept.prompt_pairs, strict=True))
        packs.append(replace(row, pairs=tuple(replace(p, prompt_pairs=counts[p.pair_id]) for p in row.pairs)))
    return packs


def loss_again(
    task: TrainTask, row: Pack, kept: FailedPack, logps_L: torch.Tensor, prompts: Mapping[str, str]
) -> tuple[torch.Tensor, list[RowReport]]:
    """Return the summed loss of a kept pack, with gradient, and what each of its rows has to do with it."""
    if task.kind == "sft":
        weights_L = torch.from_numpy(row.weight_L).to(logps_L)
        used_L = torch.where(weights_L > 0, logps_L, torch.zeros_like(logps_L))
        return -(used_L * weights_L).sum(), _trace_reports(row, kept, used_L * weights_L, prompts)
    logps = _with_references(pair_logps(row, logps_L, torch.zeros_like(logps_L)), row, kept)
    loss = erpo_loss(logps, task.loss).loss
    reports = [
        RowReport(
            row_id=pair.pair_id,
            prompt_id=prompts.get(pair.pair_id, ""),
            pack=kept.index,
            loss=float(erpo_loss(_one(logps, number), task.loss).loss.detach()),
            chosen_logp=float(logps.chosen_B[number].detach()),
            rejected_logp=float(logps.rejected_B[number].detach()),
            ref_chosen_logp=float(logps.ref_chosen_B[number]),
            ref_rejected_logp=float(logps.ref_rejected_B[number]),
        )
        for number, pair in enumerate(row.pairs)
    ]
    return loss, reports


def _with_references(logps: PairLogps, row: Pack, kept: FailedPack) -> PairLogps:
    by_id = dict(zip(kept.row_ids, kept.references, strict=True))
    chosen_B = logps.chosen_B.new_tensor([by_id[pair.pair_id][0] for pair in row.pairs])
    rejected_B = logps.chosen_B.new_tensor([by_id[pair.pair_id][1] for pair in row.pairs])
    return replace(logps, ref_chosen_B=chosen_B, ref_rejected_B=rejected_B)


def _one(logps: PairLogps, number: int) -> PairLogps:
    part = slice(number, number + 1)
    return PairLogps(
        chosen_B=logps.chosen_B[part],
        rejected_B=logps.rejected_B[part],
        ref_chosen_B=logps.ref_chosen_B[part],
        ref_rejected_B=logps.ref_rejected_B[part],
        chosen_tokens_B=logps.chosen_tokens_B[part],
        rejected_tokens_B=logps.rejected_tokens_B[part],
        prompt_pairs_B=logps.prompt_pairs_B[part],
        axes=logps.axes[part],
        kinds=logps.kinds[part],
    )


def _trace_reports(
    row: Pack, kept: FailedPack, weighted_L: torch.Tensor, prompts: Mapping[str, str]
) -> list[RowReport]:
    """Return one report per trace: traces lie one after the other, each from its own root."""
    starts = [node.start for node in row.nodes if node.parent < 0]
    owner_L = torch.bucketize(torch.from_numpy(row.source_L), torch.tensor(starts), right=True) - 1
    sums = weighted_L.detach().cpu().new_zeros(len(starts)).index_add(0, owner_L, weighted_L.detach().cpu())
    return [
        RowReport(row_id=row_id, prompt_id=prompts.get(row_id, ""), pack=kept.index, loss=-total, chosen_logp=total)
        for row_id, total in zip(row.example_ids, sums.tolist(), strict=True)
    ]


__all__ = ["StepFigures", "failed_batch", "loss_again", "packs_again"]
