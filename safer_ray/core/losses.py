"""The SFT and ERPO losses as pure functions of log-probabilities.

Both return a *sum* beside the weight it was summed over, so that the mean over an optimiser step is exact
however its rows were packed and spread over ranks: add the sums, add the weights, divide once.

ERPO, for siblings ``s^w`` (chosen) and ``s^l`` (rejected) at one prefix ``h``, in nats summed over the step:

    margin     = beta * [(log pi(s^w|h) - log ref(s^w|h)) - (log pi(s^l|h) - log ref(s^l|h))]
    logit      = margin + alpha * (|s^w| - |s^l|)              the second term on efficiency pairs only
    loss       = -log sigmoid(logit) * axis_weight * step_weight  +  nll_weight * -log pi(s^w|h) / |s^w|

The sign of the alpha term is R-DPO's (Park et al. 2024, "Disentangling Length from Quality in DPO", eq. 9: the reward
carries ``-alpha |s|``, which moves to the logit with a plus). An efficiency pair prefers the shorter sibling, so its
term is negative: a head start that the margin must overcome, so such a pair keeps pulling until the policy prefers
the shorter sibling by more than ``alpha`` per token saved.

Laws: without the NLL term loss(logit) - loss(-logit) = -logit (a swapped pair mirrors its logit), and loss(0) = ln 2.

Letters: B pairs, L log-probs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

from safer_ray.records import Axis, StepKind


class ErpoTerms(Protocol):
    """The weights of the loss terms; ``backends.base.LossSettings`` is one."""

    @property
    def beta(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def nll_weight(self) -> float: ...
    @property
    def axis_weights(self) -> tuple[tuple[str, float], ...]: ...
    @property
    def step_weights(self) -> tuple[tuple[StepKind, float], ...]: ...
    @property
    def prompt_weighting(self) -> Literal["mean", "sum"]: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairLogps:
    """B pairs: log-probs in nats, summed over the annotated step only, and the step lengths in tokens.

    ``prompt_pairs_B`` is how many pairs the pair's prompt has in the stage. Gradients flow into ``chosen_B`` and
    ``rejected_B``.
    """

    chosen_B: torch.Tensor
    rejected_B: torch.Tensor
    ref_chosen_B: torch.Tensor
    ref_rejected_B: torch.Tensor
    chosen_tokens_B: torch.Tensor
    rejected_tokens_B: torch.Tensor
    prompt_pairs_B: torch.Tensor
    axes: tuple[Axis, ...]
    kinds: tuple[StepKind, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossOutput:
    """``loss`` (0-d, with gradient) is a sum over pairs; ``loss / weight`` is their mean.

    ``margin_B`` is the implicit reward margin in nats times beta, without the alpha term.
    """

    loss: torch.Tensor
    weight: float
    margin_B: torch.Tensor


def sft_loss(logps_L: torch.Tensor, weights_L: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the weighted negative log-likelihood, summed, and the sum of the weights.

    A token of weight 0 contributes neither loss nor gradient, even where its log-prob is not finite.
    """
    used_L = torch.where(weights_L > 0, logps_L, torch.zeros_like(logps_L))
    return -(used_L * weights_L).sum(), float(weights_L.sum())


def pair_weights(prompt_pairs: Sequence[int], weighting: Literal["mean", "sum"]) -> list[float]:
    """Return one weight per pair: ``mean`` gives every prompt the same say, ``sum`` every pair.

    Raises:
        ValueError: if the weighting is unknown.
    """
    match weighting:
        case "mean":
            return [1.0 / n for n in prompt_pairs]
        case "sum":
            return [1.0] * len(prompt_pairs)
    raise ValueError(f"prompt_weighting must be mean or sum, got {weighting!r}")


def erpo_loss(logps: PairLogps, terms: ErpoTerms) -> LossOutput:
    """Return the ERPO loss of the module's head, summed over pairs.

    The weight is that of ``pair_weights`` alone: the weights of axes and steps scale preferences and are not divided
    out. A step that is not named weighs 1.

    Raises:
        ValueError: if beta is not positive or an axis has no weight.
    """
    if terms.beta <= 0:
        raise ValueError(f"beta must be > 0, got {terms.beta}")
    weight_of_axis = dict(terms.axis_weights)
    unknown = sorted(set(logps.axes) - weight_of_axis.keys())
    if unknown:
        raise ValueError(f"axis_weights has no weight for {', '.join(unknown)}; it names {', '.join(weight_of_axis)}")
    new = logps.chosen_B.new_tensor
    weight_of_step = dict(terms.step_weights)
    preference_weight_B = new(
        [
            weight_of_axis[axis] * weight_of_step.get(kind, 1.0)
            for axis, kind in zip(logps.axes, logps.kinds, strict=True)
        ]
    )
    alpha_B = new([terms.alpha if axis == "efficiency" else 0.0 for axis in logps.axes])
    prompt_weight_B = new(pair_weights(logps.prompt_pairs_B.tolist(), terms.prompt_weighting))

    gain_B = (logps.chosen_B - logps.ref_chosen_B) - (logps.rejected_B - logps.ref_rejected_B)
    margin_B = terms.beta * gain_B
    logit_B = margin_B + alpha_B * (logps.chosen_tokens_B - logps.rejected_tokens_B)
    nll_B = -logps.chosen_B / logps.chosen_tokens_B
    loss_B = -F.logsigmoid(logit_B) * preference_weight_B + terms.nll_weight * nll_B
    return LossOutput(
        loss=(loss_B * prompt_weight_B).sum(), weight=float(prompt_weight_B.sum()), margin_B=margin_B.detach()
    )


__all__ = ["ErpoTerms", "LossOutput", "PairLogps", "erpo_loss", "pair_weights", "sft_loss"]
