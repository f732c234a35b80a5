"""Reading a job file: YAML in, ``RunConfig`` out, or a sentence with file, line, key and the nearest known key."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from safer_ray.config import RunConfig
from safer_ray.core.located_yaml import yaml_abuse
from safer_ray.errors import ConfigError

_MOST_BYTES = 2**20
_MOST_NODES = 100_000
_SHOWN = 80
"""Characters of a given value that a message repeats."""
_WORDS = {
    "too_short": "needs at least {min_length} entry",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "model_type": "is a section; write its keys below it",
}
"""Plainer words than pydantic's, by its error type."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run config of a job file with ``a.b=c`` overrides applied (values are YAML).

    Raises:
        ConfigError: naming file, line and key.
    """
    tree = _read_yaml(path)
    for override in overrides:
        _apply_override(tree, override)
    try:
        return RunConfig.model_validate(_plain(tree, iter(range(_MOST_NODES))))
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{path}: nested too deep, or an alias holds itself; write plain keys") from exc
    except ValidationError as exc:
        raise ConfigError(_explain(exc, tree, path)) from exc


def shipped(folder: str) -> Path:
    """Return where this installation keeps ``jobs`` or ``rule_packs``: in the wheel, else in the checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "shipped" / folder
    return inside if inside.is_dir() else package.parent / folder


def find_job(job: str) -> Path:
    """Return the path of a job: a file, or the name of a shipped one such as ``demo_cpu`` or ``jobs/demo_cpu.yaml``.

    Raises:
        ConfigError: listing the shipped jobs.
    """
    if Path(job).is_file():
        return Path(job)
    candidate = shipped("jobs") / f"{Path(job).stem}.yaml"
    if candidate.is_file() and Path(job).parent in (Path("."), Path("jobs")):
        return candidate
    known = ", ".join(sorted(path.stem for path in shipped("jobs").glob("*.yaml")))
    raise ConfigError(f"job {job}: no such file; shipped jobs are {known}")


def _read_yaml(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path}: larger than 1 MiB, so it is no job file; name the YAML file of a job")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 text (byte {exc.start}); save it as UTF-8") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror}); check the path and its permissions") from exc
    return _parse_yaml(text, str(path), {} if not text.strip() else None)


def _parse_yaml(text: str, where: str, empty: Any) -> Any:
    if abuse := yaml_abuse(text):
        raise ConfigError(f"{where}: {abuse}")
    try:
        tree = YAML(typ="rt").load(StringIO(text))
    except MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else "?"
        raise ConfigError(f"{where}:{line}: not YAML: {exc.problem or exc.context}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{where}: nested too deep; a few levels of plain keys are enough") from exc
    except (YAMLError, ValueError) as exc:
        raise ConfigError(f"{where}: not YAML: {str(exc).splitlines()[0]}") from exc
    tree = empty if tree is None and empty is not None else tree
    if not isinstance(tree, dict):
        found = "a list" if isinstance(tree, list) else "a single value"
        raise ConfigError(f"{where}: a job file is a mapping of keys, not {found}; see jobs/ for examples")
    return tree


def _apply_override(tree: Any, override: str) -> None:
    key, found, value = override.partition("=")
    path = key.strip().split(".")
    if not found or not all(path):
        raise ConfigError(f"--set {override}: write it as a.b=value")
    try:
        if yaml_abuse(value):
            raise ValueError
        parsed = YAML(typ="safe").load(value) if value.strip() else ""
    except (YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"--set {override[:_SHOWN]}: the value is not YAML; quote it") from exc
    node = tree
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section")
    node[path[-1]] = parsed


def _plain(node: Any, left: Iterator[int]) -> Any:
    """Return the tree as plain dicts and lists. Aliases are copied, so ``left`` bounds what a small file may become."""
    if next(left, None) is None:
        raise ConfigError(f"more than {_MOST_NODES} values once its aliases are filled in; write plain keys")
    if isinstance(node, dict):
        return {str(key): _plain(value, left) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value, left) for value in node]
    return node


def _explain(exc: ValidationError, tree: Any, path: Path) -> str:
    """Name the first fault: the one a person mends first."""
    error = exc.errors()[0]
    loc = [part for part in error["loc"] if not str(part).startswith(("function-", "[key]"))]
    key = ".".join(map(str, loc)) or "the config"
    where = f"{path}:{_line_of(tree, loc)}" if _line_of(tree, loc) else f"{path}"
    more = f" (and {exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
    if error["type"] == "extra_forbidden":
        known = _known_keys(loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.0 if len(known) < 4 else 0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; known keys are {', '.join(known)}"
        return f"{where}: unknown key {_cut(key)}{hint}{more}"
    if error["type"] == "missing":
        return f"{where}: {key} is missing{more}; add it"
    given = error.get("input")
    if given is None and error["type"] == "model_type":
        return f"{where}: {key} is an empty section{more}; fill it or leave it out"
    words = _WORDS.get(error["type"], error["msg"].removeprefix("Value error, "))
    message = (
        words.format_map(error["ctx"]) if error["type"] in _WORDS and "ctx" in error else words
    ) + _nearest_choice(error)
    shown = f" (given: {_cut(repr(given))})" if isinstance(given, str | int | float | bool | None) else ""
    return f"{where}: {key}: {message}{shown}{more}"


def _nearest_choice(error: Any) -> str:
    """Return the choice somebody may have meant, where only some words are allowed."""
    choices = re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(str(error.get("input")), choices, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _line_of(tree: Any, loc: Sequence[Any]) -> int | None:
    """Return the 1-based line of the deepest part of ``loc`` that stands in the file."""
    line, node = None, tree
    for part in loc:
        marks = getattr(node, "lc", None)
        try:
            line = marks.key(part)[0] + 1 if isinstance(node, dict) else marks.item(part)[0] + 1  # type: ignore[union-attr]
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _known_keys(loc: Sequence[Any]) -> list[str]:
    model: Any = RunConfig
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        model = _model_in(field.annotation)
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)


def default_threads() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
