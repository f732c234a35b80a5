"""What can be known of a run before anything is started: prompts, rules, plan, who works on what."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safer_ray.backends.paraphrases import find_paraphrases
from safer_ray.backends.rule_packs import read_pack
from safer_ray.config import LoopConfig, PromptSource, RunConfig
from safer_ray.core.decontamination import decontaminate
from safer_ray.core.items import alternating, balanced, spread
from safer_ray.core.plan import Phase, PlanSizes, make_plan
from safer_ray.core.rules import RulePack
from safer_ray.errors import ConfigError
from safer_ray.judge_specs import judge_warnings
from safer_ray.prompts import PromptSet, load_prompts
from safer_ray.records import NO_RULE, Prompt
from safer_ray.summary import versions
from safer_ray.tables import file_digest

logger = logging.getLogger(__name__)
SCALE: Any = {
    "loop": set(LoopConfig.model_fields) - {"policy", "max_lag"},
    "cluster": True,
    "track": True,
    "sampler": {"replicas", "elastic", "resources", "threads"},
    "judge": {"replicas", "elastic", "resources"},
    "learner": {"resources", "threads"},
}
"""Parts of the config that change how fast a run goes or what it shows, not what it computes.

A resumed run may change them.
"""
_END_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What is known of a run before any worker starts."""

    config: RunConfig
    prompts: PromptSet
    phases: tuple[Phase, ...]
    by_phase: dict[str, Sequence[Prompt]]
    evaluation_texts: tuple[str, ...]
    head: dict[str, Any]


def prepare(config: RunConfig) -> Preparation:
    """Read prompts and rules and make the plan; nothing is started or written.

    Raises:
        ConfigError, DataError, RulePackError: for whatever could not run.
    """
    pack = read_pack(config.rules.pack)
    _require_known(config, pack)
    config = never_sampling(config, pack)
    prompts = load_prompts(config.prompts.sources, max_bad_share=config.prompts.max_bad_share)
    unknown = sorted({p.category for p in prompts.prompts} - set(pack.rules) - {NO_RULE})
    if unknown:
        raise ConfigError(
            f"prompts name the categories {', '.join(unknown)}, which rule pack {pack.name} does not have; "
            "add the rules or map the column with prompts.sources[].columns"
        )
    texts = _evaluation_texts(config)
    above = config.prompts.decontaminate_above
    paraphrases = partial(find_paraphrases, at_least=above) if above is not None else None
    clean = decontaminate(prompts.prompts, texts, paraphrases)
    prompts = replace(prompts, prompts=clean.prompts)
    for warning in judge_warnings(config):
        logger.warning("%s", warning)
    phases, by_phase = plan_of(config, prompts.prompts)
    for phase in phases:
        if phase.gathers and not by_phase[phase.name]:
            raise ConfigError(
                f"phase {phase.name}: there are no prompts for it; check prompts.sources and the splits of their rows"
            )
    return Preparation(
        config=config,
        prompts=prompts,
        phases=phases,
        by_phase=by_phase,
        evaluation_texts=texts,
        head=_head(config, prompts, pack) | {"decontaminated": clean.dropped, "phases": phase_facts(phases, by_phase)},
    )


def _require_known(config: RunConfig, pack: RulePack) -> None:
    """Refuse a category to keep from models that no rule has, and traces or a tracker that are not there.

    Raises:
        ConfigError: a misspelt id would let its prompts through.
    """
    named = config.prompts.never_sample if "never_sample" in config.prompts.model_fields_set else ()
    for rule_id in named:
        if rule_id not in pack.rules and rule_id != NO_RULE:
            raise ConfigError(
                f"prompts.never_sample names {rule_id}, which rule pack {pack.name} does not have; "
                f"it has {', '.join(pack.rules)}"
            )
    traces = config.sft.traces if "sft" in config.stages else None
    if traces and not Path(traces).is_file():
        raise ConfigError(
            f"sft.traces: {traces} is not there; name the traces/sft.arrow of a run, or add synth to stages"
        )
    if config.track == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("track: tensorboard is not installed; pip install tensorboard, or set track=none")


def never_sampling(config: RunConfig, pack: RulePack) -> RunConfig:
    """Return the config with every rule that its pack marks ``never_sample`` in ``prompts.never_sample``, too."""
    named = config.prompts.never_sample
    more = tuple(rule.rule_id for rule in pack.rules.values() if rule.never_sample and rule.rule_id not in named)
    # The default names a rule that this pack may not have.
    known = tuple(rule_id for rule_id in named if rule_id in pack.rules or rule_id == NO_RULE)
    prompts = config.prompts.model_copy(update={"never_sample": (*known, *more)})
    return config.model_copy(update={"prompts": prompts}) if more else config


def _evaluation_texts(config: RunConfig) -> tuple[str, ...]:
    """Return the prompts of the evaluation sets that must not be trained on."""
    return tuple(
        prompt.text
        for path in config.prompts.decontaminate
        for prompt in load_prompts([PromptSource(path=path)], max_bad_share=config.prompts.max_bad_share).prompts
    )


def plan_of(config: RunConfig, prompts: Sequence[Prompt]) -> tuple[tuple[Phase, ...], dict[str, Sequence[Prompt]]]:
    """Return the phases of a run, and the prompts of each in item order; both follow from config and prompts alone."""
    shares = _share_out(config, prompts)
    sizes = PlanSizes(
        teach=len(shares.teach),
        explore=len(shares.rounds[0]) if shares.rounds else 0,
        evaluate=len(shares.test),
        rounds=config.erpo.rounds,
    )
    phases = make_plan(
        config.stages, sizes, evaluate_each=config.evaluate.checkpoints == "all", max_lag=config.loop.max_lag
    )
    return phases, {phase.name: shares.of(phase) for phase in phases}


def phase_facts(phases: Sequence[Phase], by_phase: Mapping[str, Sequence[Prompt]]) -> dict[str, dict[str, Any]]:
    """Return, by phase, what must not change once it has begun: its place in the plan, and its prompts in order."""
    return {
        phase.name: {**asdict(phase), "prompts": _digest(prompt.prompt_id for prompt in by_phase[phase.name])}
        for phase in phases
    }


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Which prompts go where: to traces, to each ERPO round, to evaluations."""

    teach: list[Prompt]
    rounds: list[list[Prompt]]
    test: list[Prompt]

    def of(self, phase: Phase) -> Sequence[Prompt]:
        """Return the prompts of one phase."""
        match phase.kind:
            case "teach":
                return self.teach
            case "explore":
                return self.rounds[phase.round - 1] if self.rounds else ()
            case "evaluate":
                return self.test
            case _:
                return ()


def _share_out(config: RunConfig, prompts: Sequence[Prompt]) -> Shares:
    """Split the prompts over the phases.

    Rounds take prompts no trace was written for first: siblings of a prompt the policy was taught by heart
    hardly differ. Every round is half unsafe, with the same forms on both sides, as far as they last, or its
    preferences would pull the policy towards refusing or answering as such. So they choose before SFT does where it
    leaves any: what it leaves of near misses may be none, and ordinary questions hardly tell where to stop refusing.
    """
    banned = set(config.prompts.never_sample)
    train = [p for p in prompts if p.split != "test"]
    order = [p for p in spread(train, 0, config.seed) if p.category not in banned]
    teach_of = partial(balanced, limit=config.sft.max_prompts, seed=config.seed, unsafe_share=config.sft.unsafe_share)
    first = _set_aside(
        order, train, teach_of(train), config.erpo.rounds * (config.erpo.prompts_per_round or len(order))
    )
    kept = {p.prompt_id for p in first}
    teach = teach_of([p for p in train if p.prompt_id not in kept])
    taught = {p.prompt_id for p in teach} if "synth" in config.stages else set()
    fresh = [p for p in order if p.prompt_id not in taught | kept]
    known = [p for p in order if p.prompt_id in taught]
    pool = first + alternating(fresh) + alternating(known)
    size = min(config.erpo.prompts_per_round or len(pool), len(pool))
    starts = [number * size for number in range(config.erpo.rounds if pool else 0)]
    rounds = [[pool[(start + offset) % len(pool)] for offset in range(size)] for start in starts]
    test = [p for p in prompts if p.split == "test" and p.category not in banned]
    unsafe = spread([p for p in test if p.label == "unsafe"], config.evaluate.max_unsafe, config.seed)
    safe = spread([p for p in test if p.label != "unsafe"], config.evaluate.max_safe, config.seed)
    return Shares(teach=teach, rounds=rounds, test=unsafe + safe)


def _set_aside(order: Sequence[Prompt], train: Sequence[Prompt], teach: Sequence[Prompt], wanted: int) -> list[Prompt]:
    """Return at most ``wanted`` prompts by turns of both labels, as many of each as ``teach`` leaves of both."""
    every, taken = (Counter(p.label == "unsafe" for p in some) for some in (train, teach))
    each = min(wanted // 2, *(every[label] - taken[label] for label in (True, False)))
    left, found = {True: each, False: each}, list[Prompt]()
    for prompt in alternating(order):
        if left[prompt.label == "unsafe"] > 0:
            left[prompt.label == "unsafe"] -= 1
            found.append(prompt)
    return found


def _head(config: RunConfig, prompts: PromptSet, pack: RulePack) -> dict[str, Any]:
    data = _digest(sorted(f"{p.prompt_id}\t{p.text}" for p in prompts.prompts))
    return {
        "name": config.name,
        "model": config.model.id,
        "seed": config.seed,
        "rule_pack": {
            "name": pack.name,
            "version": pack.version,
            "hash": pack.content_hash,
            "categories": {rule_id: rule.title for rule_id, rule in pack.rules.items()},
        },
        "config": identity(config),
        "config_hash": hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest(),
        "data_hash": data,
        "prompts": len(prompts.prompts),
        "model_files": _directory_fingerprint(Path(config.model.id)),
        "traces_file": file_digest(Path(config.sft.traces)) if config.sft.traces else None,
        "bad_rows": len(prompts.bad_rows),
        "warnings": judge_warnings(config),
        "versions": versions(),
        "started_at": time.time(),
    }


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the part of a config that decides what a run computes, JSON values."""
    return config.model_dump(mode="json", exclude=SCALE)


def _directory_fingerprint(folder: Path) -> str | None:
    """Hash names, sizes and both ends of the files of a model directory; None if the model is no local directory.

    The ends of a safetensors file hold its header and its last tensor: trained weights differ there. Reading all of
    a large model would take longer than everything else before the start.
    """
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as source:
            digest.update(source.read(_END_BYTES))
            source.seek(max(0, size - _END_BYTES))
            digest.update(source.read(_END_BYTES))
    return digest.hexdigest()
