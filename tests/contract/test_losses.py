"""Laws of the SFT and ERPO losses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safer_ray.backends.base import LossSettings
from safer_ray.core.losses import PairLogps, erpo_loss, pair_weights, sft_loss
from safer_ray.records import Axis

NATS = st.floats(-50.0, 0.0)
TERMS = LossSettings(beta=0.3, alpha=0.05, nll_weight=0.0)


def one_pair(
    logps: tuple[float, float], ref: tuple[float, float], tokens: tuple[int, int], axis: Axis = "safety"
) -> PairLogps:
    values = [torch.tensor([float(x)], dtype=torch.float64) for x in (*logps, *ref, *tokens)]
    return PairLogps(
        chosen_B=values[0],
        rejected_B=values[1],
        ref_chosen_B=values[2],
        ref_rejected_B=values[3],
        chosen_tokens_B=values[4],
        rejected_tokens_B=values[5],
        prompt_pairs_B=torch.tensor([1]),
        axes=(axis,),
        kinds=("response",),
    )


def swapped(pair: PairLogps) -> PairLogps:
    return replace(
        pair,
        chosen_B=pair.rejected_B,
        rejected_B=pair.chosen_B,
        ref_chosen_B=pair.ref_rejected_B,
        ref_rejected_B=pair.ref_chosen_B,
        chosen_tokens_B=pair.rejected_tokens_B,
        rejected_tokens_B=pair.chosen_tokens_B,
    )


def joined(pairs: list[PairLogps]) -> PairLogps:
    names = [name for name in PairLogps.__dataclass_fields__ if name.endswith("_B")]
    columns = {name: torch.cat([getattr(pair, name) for pair in pairs]) for name in names}
    axes, kinds = (tuple(each for pair in pairs for each in getattr(pair, name)) for name in ("axes", "kinds"))
    return PairLogps(**columns, axes=axes, kinds=kinds)


pairs = st.builds(
    one_pair,
    st.tuples(NATS, NATS),
    st.tuples(NATS, NATS),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from(["safety", "helpfulness", "efficiency"]),
)


@given(pairs)
def test_swapping_a_pair_mirrors_its_logit(pair: PairLogps) -> None:
    there, back = erpo_loss(pair, TERMS), erpo_loss(swapped(pair), TERMS)
    length_term = TERMS.alpha * float(pair.chosen_tokens_B - pair.rejected_tokens_B) * (pair.axes[0] == "efficiency")
    logit = float(there.margin_B) + length_term
    assert float(there.loss - back.loss) == pytest.approx(-logit, abs=1e-9)
    assert float(there.margin_B) == pytest.approx(-float(back.margin_B))


@given(st.tuples(NATS, NATS), st.integers(1, 90))
def test_the_loss_is_ln_2_at_no_preference(logps: tuple[float, float], tokens: int) -> None:
    same = one_pair(logps, logps, (tokens, tokens), "efficiency")
    assert float(erpo_loss(same, TERMS).loss) == pytest.approx(math.log(2.0))


@given(pairs)
def test_raising_the_chosen_log_prob_lowers_the_loss(pair: PairLogps) -> None:
    chosen_B = pair.chosen_B.clone().requires_grad_()
    rejected_B = pair.rejected_B.clone().requires_grad_()
    erpo_loss(replace(pair, chosen_B=chosen_B, rejected_B=rejected_B), TERMS).loss.backward()
    assert chosen_B.grad is not None
    assert rejected_B.grad is not None
    assert float(chosen_B.grad) == pytest.approx(-float(rejected_B.grad))
    assert float(chosen_B.grad) <= 0


def test_a_shorter_chosen_step_must_be_preferred_by_more_on_efficiency_pairs_only() -> None:
    def loss(axis: Axis, tokens: tuple[int, int]) -> float:
        return float(erpo_loss(one_pair((-1.0, -1.0), (-1.0, -1.0), tokens, axis), TERMS).loss)

    assert loss("efficiency", (10, 50)) > loss("efficiency", (50, 50)) > loss("efficiency", (50, 10))
    assert loss("safety", (10, 50)) == loss("safety", (50, 10)) == pytest.approx(math.log(2.0))


def test_the_nll_term_is_the_chosen_step_per_token() -> None:
    pair = one_pair((-30.0, -5.0), (-30.0, -5.0), (10, 3))
    assert float(erpo_loss(pair, replace(TERMS, nll_weight=0.5)).loss) == pytest.approx(math.log(2.0) + 0.5 * 3.0)


@given(st.lists(pairs, min_size=1, max_size=5), st.integers(0, 5))
def test_pairs_do_not_change_each_others_loss(several: list[PairLogps], cut: int) -> None:
    whole = erpo_loss(joined(several), TERMS)
    parts = [erpo_loss(joined(part), TERMS) for part in (several[:cut], several[cut:]) if part]
    assert float(whole.loss) == pytest.approx(sum(float(part.loss) for part in parts))
    assert whole.weight == pytest.approx(sum(part.weight for part in parts))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_mean_weighting_gives_every_prompt_the_same_say(pairs_per_prompt: list[int]) -> None:
    counts = [n for n in pairs_per_prompt for _ in range(n)]
    assert sum(pair_weights(counts, "mean")) == pytest.approx(len(pairs_per_prompt))
    assert sum(pair_weights(counts, "sum")) == len(counts)


def test_axis_weights_scale_the_preference_of_their_axis() -> None:
    terms = replace(TERMS, axis_weights=(("safety", 3.0), ("efficiency", 0.0)))
    pair = one_pair((-1.0, -2.0), (-1.0, -1.0), (5, 5))
    assert float(erpo_loss(pair, terms).loss) == pytest.approx(3 * float(erpo_loss(pair, TERMS).loss))
    assert float(erpo_loss(replace(pair, axes=("efficiency",)), terms).loss) == 0.0


def test_step_weights_scale_the_preference_of_their_step_and_not_its_likelihood() -> None:
    terms = replace(TERMS, nll_weight=0.0, step_weights=(("assessment", 0.25),))
    pair = one_pair((-1.0, -2.0), (-1.0, -1.0), (5, 5))
    aim, whole = replace(pair, kinds=("assessment",)), float(erpo_loss(pair, terms).loss)
    assert float(erpo_loss(aim, terms).loss) == pytest.approx(0.25 * whole)
    assert whole == float(erpo_loss(pair, replace(TERMS, nll_weight=0.0)).loss)
    muted = replace(TERMS, nll_weight=0.5, step_weights=(("assessment", 0.0),))
    assert float(erpo_loss(aim, muted).loss) == pytest.approx(0.5 * 1.0 / 5)


def test_an_axis_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="no weight for safety"):
        erpo_loss(one_pair((0.0, 0.0), (0.0, 0.0), (1, 1)), replace(TERMS, axis_weights=(("efficiency", 1.0),)))


@given(st.lists(NATS, min_size=1, max_size=9), st.lists(st.sampled_from([float("-inf"), -3.0]), max_size=9))
def test_padding_never_changes_the_sft_loss(logps: list[float], padding: list[float]) -> None:
    weights = torch.tensor([1.0] * len(logps) + [0.0] * len(padding))
    padded_L = torch.tensor([*logps, *padding], requires_grad=True)
    loss, weight = sft_loss(padded_L, weights)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-sum(logps), rel=1e-5, abs=1e-5)
    assert weight == len(logps)
    assert padded_L.grad is not None
    assert padded_L.grad.tolist() == [-1.0] * len(logps) + [0.0] * len(padding)
