"""Size budgets and house rules of the package, and what no committed file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_trees import nodes_of, sources

REPOSITORY = Path(__file__).parents[2]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 6
NAMELESS = ("utils", "util", "helpers", "helper", "common", "misc", "manager")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b")

# Paths that exist on one machine only, and hosts that only one network can reach.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$}/-])/(?:tmp|root|work|opt/pypi|opt/wheels)/|(?<![\w.~$}/-])/home/(?!ray\b|ubuntu\b)\w+"
)
INDEX_HOST = re.compile(
    r"https?://[^\s\"')]*(?:pypi|pythonhosted|/simple\b|download\.pytorch|artifactory|nexus)[^\s\"')]*"
)
THIS_FILE = "tests/unit/test_budgets.py"
TEXT_SUFFIXES = (
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".sh",
    ".lock",
    ".txt",
    ".svg",
    ".j2",
    ".json",
    ".jsonl",
    ".html",
    ".css",
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(source: str) -> Iterator[Function]:
    for node in nodes_of(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def size_faults(name: str, source: str) -> list[str]:
    """Return one line per file or function that is too long or takes too much."""
    faults = []
    lines = source.count("\n")
    if lines > MAX_FILE_LINES:
        faults.append(f"{name}: {lines} lines, at most {MAX_FILE_LINES}")
    for function in _functions(source):
        where = f"{name}:{function.lineno} {function.name}"
        length = int(function.end_lineno or function.lineno) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            faults.append(f"{where}: {length} lines, at most {MAX_FUNCTION_LINES}")
        every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        parameters = [each.arg for each in every if each.arg not in ("self", "cls")]
        if len(parameters) > MAX_PARAMETERS:
            faults.append(f"{where}: {len(parameters)} parameters, at most {MAX_PARAMETERS}")
    return faults


def _catches_everything(node: ast.AST) -> bool:
    """Whether a handler swallows any error; ``except BaseException`` that cleans up and raises again does not."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    names = {each.id for each in ast.walk(node.type) if isinstance(each, ast.Name)} if node.type else {"BaseException"}
    last = node.body[-1]
    cleans_up = "BaseException" in names and isinstance(last, ast.Raise) and last.exc is None
    return bool({"Exception", "BaseException"} & names) and not cleans_up


def manner_faults(name: str, source: str) -> list[str]:
    """Return one line per print and per handler that catches everything."""
    faults = []
    for node in nodes_of(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            faults.append(f"{name}:{node.lineno} prints")
        if _catches_everything(node) and name != "errors.py":
            faults.append(f"{name}:{getattr(node, 'lineno', 0)} catches everything: use boundary()")
    return faults


def machine_faults(text: str) -> list[str]:
    """Return what in a text names a path of one machine or the host of a package index."""
    return [match.group() for pattern in (MACHINE_PATH, INDEX_HOST) for match in pattern.finditer(text)]


def _committed_texts() -> dict[str, str]:
    """Return every text file that git tracks or would track; all of them outside a checkout."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [Path(line) for line in listed.stdout.splitlines()]
    texts = {}
    for path in paths:
        whole = REPOSITORY / path
        if whole.is_file() and (path.suffix in TEXT_SUFFIXES or not path.suffix):
            texts[path.as_posix()] = whole.read_text(encoding="utf-8")
    return texts


def test_files_and_functions_keep_to_their_budgets() -> None:
    faults = [fault for path, source in sources().items() for fault in size_faults(path.name, source)]
    assert faults == []


def test_nothing_prints_and_only_boundary_catches_everything() -> None:
    faults = [fault for path, source in sources().items() for fault in manner_faults(path.name, source)]
    assert faults == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [path.name for path in sources() if path.stem in NAMELESS] == []


def test_nothing_is_left_unfinished() -> None:
    marks = {path.name: UNFINISHED.findall(source) for path, source in sources().items()}
    assert {name: found for name, found in marks.items() if found} == {}


def test_no_committed_file_names_a_path_of_one_machine_or_an_index_host() -> None:
    faults = {path: machine_faults(text) for path, text in _committed_texts().items() if path != THIS_FILE}
    assert {path: found for path, found in faults.items() if found} == {}


def test_a_file_a_function_and_a_signature_over_budget_are_found() -> None:
    assert len(size_faults("x.py", "\n" * 401)) == 1
    assert len(size_faults("x.py", "def f():\n" + "    pass\n" * 50)) == 1
    assert len(size_faults("x.py", "def f(a, b, c, *, d, e, g, h): ...\n")) == 1
    assert size_faults("x.py", "class A:\n    def f(self, a, b, c, d, e, g): ...\n") == []


@pytest.mark.parametrize("handler", ["except:", "except Exception:", "except (ValueError, BaseException) as exc:"])
def test_a_handler_that_catches_everything_is_found(handler: str) -> None:
    source = f"try:\n    pass\n{handler}\n    pass\n"
    assert len(manner_faults("x.py", source)) == 1
    assert manner_faults("errors.py", source) == []


def test_a_handler_that_cleans_up_and_raises_again_is_not_reported() -> None:
    assert manner_faults("x.py", "try:\n    pass\nexcept BaseException:\n    close()\n    raise\n") == []


@pytest.mark.parametrize(
    "text", ["see /tmp/x", "open('/root/.cache')", "/home/alice/runs", "https://pypi.example/simple"]
)
def test_a_machine_path_is_found(text: str) -> None:
    assert machine_faults(text) != []


@pytest.mark.parametrize(
    "text", ["~/.ray/auth_token", "$HOME/tmp/x", "docs/work/notes", "https://docs.ray.io/en/latest/"]
)
def test_a_path_that_is_everywhere_is_not_reported(text: str) -> None:
    assert machine_faults(text) == []
