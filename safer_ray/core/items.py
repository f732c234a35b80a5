"""Which prompts each phase works on, and where each open prompt stands: prefix, earlier steps.

The book turns the loop's bare actions (phase, item, level) into requests for samplers and tasks for graders.
It holds nothing a resumed run would miss: open items start again from level 0.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from safer_ray.core.branching import derived_seed, first_request
from safer_ray.core.encode import plain_text
from safer_ray.core.events import Judge, Sample
from safer_ray.core.plan import Phase
from safer_ray.core.twins import mixed
from safer_ray.records import Message, Prompt, SampleRequest, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Breadth:
    """How many samples each kind of phase asks for per request; ``continuations`` are those after every sibling.

    ``whole_share`` as in :func:`taught_whole`: prompts whose trace ends early need no answers.
    """

    siblings: int
    answers: int
    continuations: int = 0
    whole_share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where one open item stands in its tree."""

    prefix_ids: tuple[int, ...] = ()
    history: tuple[Step, ...] = ()


class ItemBook:
    """Prompts per phase, and the position of every open item."""

    def __init__(self, phases: Mapping[str, tuple[Phase, Sequence[Prompt]]], breadth: Breadth, seed: int) -> None:
        self._phases = phases
        self._breadth = breadth
        self._seed = seed
        self._positions: dict[tuple[str, int], Position] = {}

    def phase(self, name: str) -> Phase:
        """Return the phase of that name."""
        return self._phases[name][0]

    def prompts(self, phase: str) -> Sequence[Prompt]:
        """Return the prompts of a gather phase in item order."""
        return self._phases[phase][1]

    def prompt(self, action: Sample | Judge) -> Prompt:
        """Return the prompt an action works on."""
        return self._phases[action.phase][1][action.item]

    def seed(self, action: Sample | Judge) -> int:
        """Return the seed of an action: the same in every run with this seed, whatever the order of work."""
        return derived_seed(self._seed, action.phase, self.prompt(action).prompt_id, action.level)

    def position(self, action: Sample | Judge) -> Position:
        """Return where the item stands; at level 0 that is always the bare prompt."""
        if action.level == 0:
            return Position()
        return self._positions[(action.phase, action.item)]

    def request(self, action: Sample, *, needs_answers: bool = True) -> SampleRequest | None:
        """Return what to ask a sampler, or None where the item needs no samples (a trace that refuses)."""
        phase, prompt, seed = self.phase(action.phase), self.prompt(action), self.seed(action)
        request_id = f"{action.phase}/{action.item}/{action.level}"
        if phase.kind == "explore" and action.level == 0:
            return first_request(prompt, request_id=request_id, n=self._breadth.siblings, seed=seed)
        if phase.kind == "explore":
            return SampleRequest(
                request_id=request_id,
                prompt_id=prompt.prompt_id,
                messages=prompt.messages,
                prefix_ids=self.position(action).prefix_ids,
                first_step=action.level,
                n=self._breadth.siblings,
                mode="step",
                seed=seed,
            )
        if phase.kind == "teach" and not (
            needs_answers and taught_whole(prompt.prompt_id, self._breadth.whole_share, self._seed)
        ):
            return None
        answering = phase.kind == "teach"
        return SampleRequest(
            request_id=request_id,
            prompt_id=prompt.prompt_id,
            messages=_decoded(prompt.messages) if answering else prompt.messages,
            n=self._breadth.answers if answering else 1,
            mode="answer" if answering else "trace",
            seed=seed,
        )

    def ahead(self, action: Sample) -> int:
        """Return how many whole continuations to sample after every sibling."""
        return self._breadth.continuations if self.phase(action.phase).kind == "explore" else 0

    def move(self, action: Judge, position: Position) -> None:
        """Note where the item stands after a level was judged."""
        self._positions[(action.phase, action.item)] = position

    def forget(self, phase: str, item: int) -> None:
        """Drop the position of a finished or dropped item."""
        self._positions.pop((phase, item), None)


def taught_whole(prompt_id: str, whole_share: float, seed: int) -> bool:
    """Return whether a prompt is among the ``whole_share`` of all whose traces are taught to their end."""
    return random.Random(f"{seed} whole {prompt_id}").random() < whole_share


def _decoded(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the conversation with an encoded request in plain words: a plain model cannot decode it."""
    last = messages[-1]
    return (*messages[:-1], replace(last, content=plain_text(last.content)))


def spread(prompts: Sequence[Prompt], limit: int, seed: int) -> list[Prompt]:
    """Return ``limit`` prompts (0: all) spread evenly over categories, in an order fixed by ``seed``."""
    rng = random.Random(seed)
    groups: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda p: p.prompt_id):
        groups.setdefault(prompt.category, []).append(prompt)
    for group in groups.values():
        rng.shuffle(group)
    longest = max(map(len, groups.values()), default=0)
    order = [groups[name][depth] for depth in range(longest) for name in sorted(groups) if depth < len(groups[name])]
    return order[:limit] if limit else order


def balanced(prompts: Sequence[Prompt], limit: int, seed: int, *, unsafe_share: float = 0.5) -> list[Prompt]:
    """Return ``limit`` prompts (0: all), ``unsafe_share`` of them unsafe as far as they last.

    They are mixed by ``seed``, twins side by side.
    """
    unsafe = spread([p for p in prompts if p.label == "unsafe"], 0, seed)
    safe = spread([p for p in prompts if p.label != "unsafe"], 0, seed)
    if limit:
        harmful = math.floor(limit * unsafe_share)
        few_unsafe, few_safe = min(len(unsafe), harmful), min(len(safe), limit - harmful)
        unsafe, safe = unsafe[: limit - few_safe], safe[: limit - few_unsafe]
    return mixed(unsafe + safe, seed)


def alternating(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return unsafe and safe prompts by turns while both last, each kind in its order as far as forms allow.

    An unsafe prompt is followed by the next safe one of its form. Those without such a partner come after all that
    have one: a stretch with one form on one side only would teach that the form decides.
    """
    safe_of: dict[str, deque[Prompt]] = {}
    for prompt in prompts:
        if prompt.label != "unsafe":
            safe_of.setdefault(prompt.form, deque()).append(prompt)
    paired, alone = list[Prompt](), list[Prompt]()
    for prompt in prompts:
        if prompt.label == "unsafe":
            partners = safe_of.get(prompt.form)
            if partners:
                paired += [prompt, partners.popleft()]
            else:
                alone.append(prompt)
    used = {prompt.prompt_id for prompt in paired}
    left = [prompt for prompt in prompts if prompt.label != "unsafe" and prompt.prompt_id not in used]
    both = min(len(alone), len(left))
    by_turns = [prompt for pair in zip(alone, left, strict=False) for prompt in pair]
    return paired + by_turns + alone[both:] + left[both:]
