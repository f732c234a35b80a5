"""What a run says of its samplers: sums over engines, and the ratios a reader looks for."""

from __future__ import annotations

from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st

from safer_ray.backends.base import SamplerStats, sampler_facts

COUNT = st.integers(0, 10**9)


@st.composite
def stats(draw: st.DrawFn) -> SamplerStats:
    prompt = draw(COUNT)
    return SamplerStats(
        requests=draw(COUNT),
        generated_tokens=draw(COUNT),
        prompt_tokens=prompt,
        cached_prompt_tokens=draw(st.integers(0, prompt)),
        generation_s=draw(st.floats(0, 1e6)),
    )


@settings(max_examples=50)
@given(st.lists(stats(), max_size=4))
def test_counters_add_up_and_the_hit_rate_is_a_share(samplers: list[SamplerStats]) -> None:
    facts = sampler_facts([asdict(each) for each in samplers])
    assert facts.get("generated_tokens", 0) == sum(each.generated_tokens for each in samplers)
    assert 0 <= facts.get("prefix_cache_hit_rate", 0) <= 1
    assert ("prefix_cache_hit_rate" in facts) == any(each.prompt_tokens for each in samplers)


def test_tokens_per_second_are_those_of_the_time_engines_ran() -> None:
    one = {"generated_tokens": 300, "generation_s": 2.0, "prompt_tokens": 100, "cached_prompt_tokens": 25}
    facts = sampler_facts([one, one])
    assert facts["tokens_per_s"] == 150
    assert facts["prefix_cache_hit_rate"] == 0.25
