"""YAML read so that every complaint can name the file and the line it is about.

Pure: text in, mappings out. A reader refuses a key it was not told of, and offers the nearest it knows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.tokens import AliasToken, FlowMappingStartToken, FlowSequenceStartToken, KeyToken

from safer_ray.errors import SaferRayError

_MOST_DEPTH = 64
_SUSPECT = re.compile(r"(?:^|[\[{,:?-])[ \t]*\?(?=\s|$)|[}\]]\s*:|\*[^\s,\[\]{}]+\s*:", re.MULTILINE)
"""Where a key may stand that is no plain word; what it finds in quoted text the scanner clears."""


def yaml_abuse(text: str) -> str:
    """Say what in ``text`` would take the YAML library seconds to years, "" if nothing would.

    It hashes a collection used as a key anew at every level above it, and scans nested brackets in cubic time.
    """
    depth = deepest = 0
    for letter in text:
        if letter in "[]{}":
            depth = max(0, depth + (1 if letter in "[{" else -1))
            deepest = max(deepest, depth)
    if deepest > _MOST_DEPTH:
        return "nested too deep; a few levels of plain keys are enough"
    return "a key is no plain word; write key: value" if _SUSPECT.search(text) and _has_complex_key(text) else ""


def _has_complex_key(text: str) -> bool:
    after_key = False
    try:
        for token in YAML(typ="rt").scan(text):
            if after_key and isinstance(token, FlowSequenceStartToken | FlowMappingStartToken | AliasToken):
                return True
            after_key = isinstance(token, KeyToken)
            if after_key and token.end_mark.index > token.start_mark.index:  # written out, as a question mark
                return True
    except (YAMLError, ValueError):
        return False  # the loader says it with the line
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class MapReader:
    """One YAML mapping, with where it stands and which error its faults raise."""

    data: CommentedMap
    where: str
    owner: str
    error: type[SaferRayError]

    def line(self, key: str | None = None) -> int:
        """Return the 1-based line of ``key``, or of the mapping itself if it has no such key."""
        if key is not None and key in self.data:
            return int(self.data.lc.key(key)[0]) + 1
        return int(self.data.lc.line) + 1

    def refuse(self, message: str, key: str | None = None) -> SaferRayError:
        """Return the error that says ``message`` of this mapping, at the line of ``key``."""
        owner = f"{self.owner}: " if self.owner else ""
        return self.error(f"{self.where}:{self.line(key)}: {owner}{message}")

    def only(self, known: Iterable[str]) -> None:
        """Raise on the first key that is not ``known``."""
        keys = list(known)
        for key in self.data:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(keys)}"
                raise self.refuse(f"unknown key {str(key)!r}; {hint}", str(key))

    def has(self, key: str) -> bool:
        """Whether ``key`` is written down."""
        return key in self.data

    def _get(self, key: str) -> Any:
        if key not in self.data:
            raise self.refuse(f"{key!r} is missing; add it")
        return self.data[key]

    def text(self, key: str) -> str:
        """Return a non-empty string."""
        value = self._get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.refuse(f"{key!r} must be non-empty text, got {value!r}; quote it if it looks like a number", key)
        return str(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a non-empty list of non-empty strings."""
        value = self._get(key)
        if not isinstance(value, CommentedSeq) or not value:
            raise self.refuse(f"{key!r} must be a list with at least one text", key)
        for position, item in enumerate(value):
            if not isinstance(item, str) or not item.strip():
                line = int(value.lc.item(position)[0]) + 1
                raise self.error(
                    f"{self.where}:{line}: {self.owner}: {key!r} holds {item!r}, which is not text; quote it"
                )
        return tuple(str(item) for item in value)

    def integer(self, key: str, low: int, high: int) -> int:
        """Return a whole number in ``low..high``."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(f"{key!r} must be a whole number from {low} to {high}, got {value!r}", key)
        return int(value)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._get(key)
        if not isinstance(value, bool):
            raise self.refuse(f"{key!r} must be true or false, got {value!r}", key)
        return value

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """Return one of the ``known`` words."""
        value = self.text(key)
        if value not in known:
            raise self.refuse(f"{key!r} must be one of {', '.join(known)}, got {value!r}", key)
        return value

    def maps(self, key: str) -> list[MapReader]:
        """Return a list of mappings, each a reader of its own."""
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(item, CommentedMap) for item in value):
            raise self.refuse(f"{key!r} must be a list of mappings", key)
        return [MapReader(data=item, where=self.where, owner=self.owner, error=self.error) for item in value]

    def named(self, owner: str) -> MapReader:
        """Return the same mapping under a name that its errors start with."""
        return MapReader(data=self.data, where=self.where, owner=owner, error=self.error)


@lru_cache(maxsize=8)
def _tree(text: str) -> Any:
    """Return what ``text`` holds; kept, as a pack takes 0.2 s and is read often. Readers change nothing in it."""
    return YAML(typ="rt").load(text)


def read_yaml(text: str, where: str, error: type[SaferRayError]) -> MapReader:
    """Return the mapping that ``text`` holds; ``where`` names the file in messages.

    Raises:
        SaferRayError: of class ``error``, as ``file:line: sentence``, if it is no YAML or no mapping.
    """
    if abuse := yaml_abuse(text):
        raise error(f"{where}:1: {abuse}")
    try:
        data = _tree(text)
    except MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark is not None else 1
        problem = str(exc.problem or exc.context or "not YAML").splitlines()[0]
        raise error(f"{where}:{line}: this is not valid YAML: {problem}") from exc
    except RecursionError as exc:
        raise error(f"{where}:1: nested too deep; a few levels of plain keys are enough") from exc
    except (YAMLError, ValueError) as exc:
        raise error(f"{where}:1: this is not valid YAML: {str(exc).splitlines()[0]}") from exc
    if not isinstance(data, CommentedMap):
        found = "a list" if isinstance(data, list) else "nothing" if data is None else "a single value"
        raise error(f"{where}:1: a mapping is needed at the top, got {found}")
    return MapReader(data=data, where=where, owner="", error=error)
