"""Sampling a step's siblings and, on the same engine, what comes after each of them."""

from __future__ import annotations

from collections.abc import Sequence

from safer_ray.backends.base import Sampler
from safer_ray.core.outcome import continuation_requests
from safer_ray.records import Rollout, SampleRequest


def sample_ahead(sampler: Sampler, requests: Sequence[SampleRequest], each: int) -> list[Rollout]:
    """Return the siblings of every request, then ``each`` whole continuations of every sibling (0: none).

    All continuations are one batch, on the engine whose prefix cache has just seen their prefixes.

    Raises:
        SamplerError: naming the request that cannot be served.
    """
    siblings = sampler.sample(requests)
    ahead: list[SampleRequest] = []
    start = 0
    for request in requests:
        ahead += continuation_requests(request, siblings[start : start + request.n], each)
        start += request.n
    return siblings + (sampler.sample(ahead) if ahead else [])
