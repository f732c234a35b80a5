"""From the config's judges to specs, one purpose at a time, and what to say about the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from safer_ray.backends.asker import AskerSpec
from safer_ray.backends.base import JudgeSpec
from safer_ray.backends.endpoint import EndpointSpec
from safer_ray.backends.ensemble_judge import EnsembleJudgeSpec, Member
from safer_ray.backends.fake import FakeJudgeSpec
from safer_ray.backends.judge_cache import user_cache_path
from safer_ray.backends.judge_templates import template_for
from safer_ray.backends.llm_judge import LlmJudgeSpec, Prices
from safer_ray.backends.outcome_judge import OutcomeJudgeSpec
from safer_ray.backends.rule_judge import RuleJudgeSpec
from safer_ray.backends.selection import SelectionSpec
from safer_ray.backends.vllm_asker import VllmAskerSpec
from safer_ray.config import RunConfig
from safer_ray.config_file import default_threads
from safer_ray.core.ensemble import EnsembleRules
from safer_ray.core.outcome import OutcomeRules
from safer_ray.core.pairing import PairingRules
from safer_ray.judge_config import LlmJudgeConfig
from safer_ray.records import Axis
from safer_ray.rundir import RunDir


def judge_for(config: RunConfig, names: Sequence[str], run_dir: RunDir | None) -> JudgeSpec:
    """Return how to build the judge of one purpose: one judge, or several as an ensemble.

    Outside a run (``run_dir`` None) no verdicts are kept in it.
    """
    section = config.judge
    chosen = tuple(names) or (section.kind,)
    if len(chosen) == 1:
        return _judge_named(config, chosen[0], run_dir)
    members = tuple(
        Member(name=name, weight=section.ensemble.weights.get(name, 1.0), spec=_judge_named(config, name, run_dir))
        for name in chosen
    )
    how = section.ensemble
    rules = EnsembleRules(quorum=how.quorum, max_spread=how.max_spread, veto=how.veto, veto_below=how.veto_below)
    return EnsembleJudgeSpec(members=members, rules=rules)


def reward_judge(config: RunConfig, run_dir: RunDir | None) -> JudgeSpec:
    """Return how to build the judge of preferences, valuing steps by their continuations if the config says so."""
    inner, section = judge_for(config, config.judge.reward, run_dir), config.judge.outcome
    if section is None:
        return inner
    axes: tuple[Axis, ...] = ("safety", "helpfulness") if section.axis == "both" else (section.axis,)
    rules = OutcomeRules(continuations=section.continuations, axes=axes, min_judged=section.min_judged)
    return OutcomeJudgeSpec(inner=inner, rules=rules, pack=config.rules.pack)


def pairing_ahead(config: RunConfig, pairing: PairingRules) -> PairingRules | None:
    """Return the margins of steps valued by continuations, None where the config has no such."""
    section = config.judge.outcome
    if section is None:
        return None
    if section.axis != "helpfulness":
        pairing = replace(pairing, safety_margin=section.threshold)
    if section.axis != "safety":
        pairing = replace(pairing, helpfulness_margin=section.threshold)
    return pairing


def _judge_named(config: RunConfig, name: str, run_dir: RunDir | None) -> JudgeSpec:
    match name:
        case "fake":
            return FakeJudgeSpec(seed=config.seed)
        case "rules":
            return RuleJudgeSpec(pack=config.rules.pack)
        case _:
            return _llm_judge(config, config.judge.llm[name], run_dir)


def _llm_judge(config: RunConfig, section: LlmJudgeConfig, run_dir: RunDir | None) -> LlmJudgeSpec:
    in_run = str(run_dir.root / "judge_cache.sqlite") if run_dir else ""
    where = {"user": str(user_cache_path()), "run": in_run, "off": ""}
    return LlmJudgeSpec(
        asker=_asker(config, section),
        model=section.model,
        pack=config.rules.pack,
        template=_template_name(section),
        pairwise=section.mode == "pairwise",
        canaries=section.canaries,
        max_chars=section.max_chars,
        cache_path=where[config.judge.cache],
        prices=Prices(tokens_in=section.price_in, tokens_out=section.price_out),
        seed=config.seed,
    )


def _template_name(section: LlmJudgeConfig) -> str:
    return "" if section.template == "auto" else section.template


def _asker(config: RunConfig, section: LlmJudgeConfig) -> AskerSpec:
    max_tokens = section.max_tokens or template_for(section.model, _template_name(section)).max_tokens
    if section.base_url is None:
        return VllmAskerSpec(
            model=section.model,
            max_tokens=max_tokens,
            max_model_len=section.max_model_len,
            kv_cache_gib=section.kv_cache_gib,
            gpu_memory_share=section.gpu_memory_share,
            tensor_parallel=max(1, int(config.judge.resources.gpus)),
            threads=int(config.judge.resources.cpus) or default_threads(),
            trust_remote_code=section.trust_remote_code,
        )
    return EndpointSpec(
        base_url=section.base_url,
        model=section.model,
        key_env=section.key_env,
        concurrency=section.concurrency,
        deadline_s=section.deadline_s,
        max_tries=section.max_tries,
        temperature=0.0,
        max_tokens=max_tokens,
        requests_per_minute=section.requests_per_minute,
        outage_s=section.outage_s,
    )


def selection_spec(config: RunConfig, run_dir: RunDir) -> SelectionSpec | None:
    """Return the filter of traces, None where the config names no judge for it."""
    if not config.judge.selection:
        return None
    return SelectionSpec(judge=judge_for(config, config.judge.selection, run_dir), floor=config.judge.selection_floor)


def judge_calls(config: RunConfig) -> int:
    """Return how many items one judge actor works on at once: waiting for an endpoint takes no core."""
    section = config.judge
    used = {*section.reward, *section.selection, *section.reporting}
    remote = [each.concurrency for name, each in section.llm.items() if name in used and each.base_url is not None]
    return max(remote, default=1)


def judge_warnings(config: RunConfig) -> list[str]:
    """Return a sentence per judge that serves two purposes: a loop learns to please its judge, and then reports it.

    The defaults warn of nothing: nobody chose them, and that the rule judge serves all purposes is documented.
    """
    section = config.judge
    purposes = {"reward": section.reward, "selection": section.selection, "reporting": section.reporting}
    if not any(purposes.values()):
        return []
    full = {name: tuple(names) or (() if name == "selection" else (section.kind,)) for name, names in purposes.items()}
    return [
        f"judge {name} serves both judge.{one} and judge.{other}; what is trained on it looks better than it is"
        for one, other in combinations(full, 2)
        for name in sorted(_models(config, full[one]) & _models(config, full[other]))
    ]


def _models(config: RunConfig, names: Sequence[str]) -> set[str]:
    """Return judges by what they are, so that two names of one model count as one."""
    return {config.judge.llm[name].model if name in config.judge.llm else name for name in names}
