"""Imports run one way, Ray stays at the rim, heavy libraries stay in the backends, and the core is pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from source_trees import PACKAGE, nodes_of, sources

# A layer may import itself and what it names. A module that stands in no layer is the driver's: it may
# import everything but the command line.
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "records": (),
    "core": ("errors", "records"),
    "tables": ("errors", "records"),
    "rundir": (),
    "config_section": (),
    "judge_config": ("config_section",),
    "stage_config": ("records", "config_section"),
    "config": ("errors", "records", "core", "config_section", "judge_config", "stage_config"),
    "prompts": ("errors", "records", "core", "config"),
    "backends": ("errors", "records", "core", "tables", "rundir"),
    "cluster": ("errors", "records", "core", "tables", "rundir", "backends"),
}
OUTERMOST = ("cli", "__main__")

HEAVY = frozenset({"torch", "vllm", "deepspeed", "transformers", "peft", "accelerate", "openai"})
TORCH_IN_CORE = ("core.losses", "core.packing")
IMPURE = frozenset(
    {"time", "datetime", "secrets", "uuid", "os", "io", "sys", "pathlib", "shutil", "tempfile", "glob", "logging"}
    | {"warnings", "socket", "subprocess", "threading", "multiprocessing", "asyncio", "urllib", "requests", "httpx"}
    | {"psutil", "sqlite3"}
)
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "__import__"})


@dataclass(frozen=True)
class Import:
    """``module`` of ours imports ``target``; ``names`` are what it takes from there."""

    module: str
    target: str
    names: tuple[str, ...]
    at_top: bool
    line: int


def _module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__") if name != "__init__" else ""


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _walk(node: ast.AST, at_top: bool) -> Iterator[tuple[ast.stmt, bool]]:
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_top
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, at_top and not inside)


@cache
def imports_of(module: str, source: str) -> list[Import]:
    """List every import that runs, wherever it stands; imports for the type checker alone do not run."""
    found = []
    for node, at_top in _walk(nodes_of(source)[0], at_top=True):
        if isinstance(node, ast.Import):
            found += [Import(module, alias.name, (), at_top, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively: write the whole name"
            names = tuple(alias.name for alias in node.names)
            found.append(Import(module, str(node.module), names, at_top, node.lineno))
    return found


def _sources() -> dict[str, str]:
    return {_module_name(path): source for path, source in sources().items()}


def _all_imports() -> list[Import]:
    return [each for module, source in _sources().items() for each in imports_of(module, source)]


def _ours(each: Import) -> list[str]:
    """Which of our layers an import reaches: ``from safer_ray import tables`` reaches tables."""
    root, _, rest = each.target.partition(".")
    if root != "safer_ray":
        return []
    return [rest.partition(".")[0]] if rest else [name for name in each.names if not name.startswith("__")]


def layer_faults(imports: list[Import]) -> list[str]:
    """Return one line per import that runs against the order of the layers."""
    faults = []
    for each in imports:
        here = each.module.partition(".")[0]
        for there in _ours(each):
            if here in LAYERS:
                allowed = there == here or there in LAYERS[here]
            else:
                allowed = there not in OUTERMOST or here in OUTERMOST
            if not allowed:
                faults.append(f"safer_ray.{each.module}:{each.line} imports safer_ray.{there}")
    return faults


def library_faults(imports: list[Import]) -> list[str]:
    """Return one line per import of Ray or of a heavy library where it does not belong."""
    faults = []
    for each in imports:
        root = each.target.partition(".")[0]
        layer = each.module.partition(".")[0]
        if root == "ray" and layer != "cluster":
            faults.append(f"safer_ray.{each.module}:{each.line} imports ray outside cluster/")
        torch_in_core = root == "torch" and each.module in TORCH_IN_CORE
        if root in HEAVY and layer != "backends" and not torch_in_core:
            faults.append(f"safer_ray.{each.module}:{each.line} imports {root} outside backends/")
    return faults


def purity_faults(module: str, source: str) -> list[str]:
    """Return one line per way in which a module of the core reaches the clock, the disk or global randomness."""
    faults = []
    for each in imports_of(module, source):
        if each.target.partition(".")[0] in IMPURE:
            faults.append(f"safer_ray.{module}:{each.line} imports {each.target}")
        if each.target == "random" and set(each.names) - {"Random"}:
            faults.append(f"safer_ray.{module}:{each.line} imports global randomness: {', '.join(each.names)}")
    for node in nodes_of(source):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "random"
            and node.attr != "Random"
        ):
            faults.append(f"safer_ray.{module}:{node.lineno} uses global randomness: random.{node.attr}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            faults.append(f"safer_ray.{module}:{node.lineno} calls {node.func.id}()")
    return faults


def test_imports_run_one_way() -> None:
    assert layer_faults(_all_imports()) == []


def test_ray_and_heavy_libraries_are_imported_where_they_belong() -> None:
    assert library_faults(_all_imports()) == []


def test_the_core_is_pure() -> None:
    core = {module: source for module, source in _sources().items() if module.startswith("core")}
    assert core
    assert [fault for module, source in core.items() for fault in purity_faults(module, source)] == []


def test_no_two_modules_import_each_other() -> None:
    sources = _sources()
    graph: dict[str, set[str]] = {module: set() for module in sources}
    for each in _all_imports():
        target = each.target.removeprefix("safer_ray.")
        if each.at_top and target in sources:
            graph[each.module].add(target)
    while leaves := {module for module, targets in graph.items() if not targets & set(graph)}:
        graph = {module: targets for module, targets in graph.items() if module not in leaves}
    assert graph == {}, f"these modules import each other in a circle: {sorted(graph)}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.loop", "from safer_ray.backends.base import Judge"),
        ("core.loop", "from safer_ray import tables"),
        ("records", "import safer_ray.errors"),
        ("backends.fake", "def build():\n    from safer_ray.cluster import pool"),
        ("cluster.pool", "from safer_ray.config import RunConfig"),
        ("driver", "from safer_ray.cli import main"),
    ],
)
def test_an_import_against_the_order_is_found(module: str, source: str) -> None:
    assert len(layer_faults(imports_of(module, source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("driver", "import ray"),
        ("backends.fake", "def build():\n    from ray.util import state"),
        ("core.pairing", "import torch"),
        ("report", "def write():\n    import transformers"),
    ],
)
def test_a_library_out_of_place_is_found(module: str, source: str) -> None:
    assert len(library_faults(imports_of(module, source))) == 1


@pytest.mark.parametrize(
    "source",
    ["import time", "import os.path", "from random import choice", "x = random.random()", "def f():\n    open('x')"],
)
def test_an_impure_core_is_found(source: str) -> None:
    assert len(purity_faults("core.loop", source)) == 1


def test_what_is_allowed_is_not_reported() -> None:
    assert layer_faults(imports_of("driver", "from safer_ray.cluster.world import World")) == []
    assert library_faults(imports_of("core.losses", "import torch")) == []
    assert purity_faults("core.loop", "import random\nrng = random.Random(seed)") == []
    assert imports_of("records", "if TYPE_CHECKING:\n    import torch") == []


def _loaded_by(modules: list[str]) -> set[str]:
    """Return the top-level libraries that importing ``modules`` in a fresh interpreter loads."""
    code = "import sys; [__import__(name) for name in sys.argv[1:]]; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def _modules_with_specs() -> list[str]:
    found = []
    for module, source in _sources().items():
        classes = (node for node in nodes_of(source) if isinstance(node, ast.ClassDef))
        if module.startswith("backends.") and any(each.name.endswith("Spec") for each in classes):
            found.append(f"safer_ray.{module}")
    return found


def test_config_records_and_rules_load_no_heavy_library() -> None:
    loaded = _loaded_by(["safer_ray.config", "safer_ray.records", "safer_ray.core.rules"])
    assert loaded & (HEAVY | {"ray", "pyarrow", "datasets"}) == set()


def test_importing_any_spec_loads_no_heavy_library() -> None:
    modules = _modules_with_specs()
    assert modules
    assert _loaded_by(modules) & (HEAVY | {"ray"}) == set()
