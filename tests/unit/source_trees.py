"""The package's sources as syntax trees, read and parsed once for all suites that search them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import safer_ray

PACKAGE = Path(safer_ray.__file__).parent


@cache
def sources() -> dict[Path, str]:
    """Return the text of every module of the package."""
    return {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def nodes_of(source: str) -> tuple[ast.AST, ...]:
    """Return every node of the tree of ``source``, its module first. Whoever asks changes none."""
    return tuple(ast.walk(ast.parse(source)))
