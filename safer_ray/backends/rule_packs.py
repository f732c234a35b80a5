"""Where rule packs lie: a shipped name such as ``default``, or a path of one's own."""

from __future__ import annotations

from pathlib import Path

import safer_ray
from safer_ray.core.rules import RulePack, load_pack
from safer_ray.errors import RulePackError

_PACKAGE = Path(safer_ray.__file__).resolve().parent
SHIPPED_ROOTS: tuple[Path, ...] = (_PACKAGE.parent / "rule_packs", _PACKAGE / "shipped" / "rule_packs")
"""The repository's folder first, then the copy inside an installed wheel."""


def pack_path(pack: str | Path) -> Path:
    """Return the ``pack.yaml`` that ``pack`` names: a shipped name, a folder holding one, or the file itself.

    Raises:
        RulePackError: if there is none, naming the shipped packs.
    """
    given = Path(pack)
    shipped = [root / given / "pack.yaml" for root in SHIPPED_ROOTS] if len(given.parts) == 1 else []
    for path in (*shipped, given / "pack.yaml", given):
        if path.is_file():
            return path
    names = sorted({path.parent.name for root in SHIPPED_ROOTS for path in root.glob("*/pack.yaml")})
    raise RulePackError(
        f"rule pack {str(pack)!r}: no such file or shipped pack; "
        f"give a path to a pack.yaml or one of {', '.join(names)}"
    )


def read_pack(pack: str | Path) -> RulePack:
    """Read the rule pack that ``pack`` names, with the packs it extends.

    Raises:
        RulePackError: if it is not found, not readable, does not load, or extends itself in a circle.
    """
    return _read(pack_path(pack), ())


def lineage(pack: str | Path) -> tuple[Path, ...]:
    """Return the ``pack.yaml`` files that ``pack`` is made of, the one all others extend first.

    Raises:
        RulePackError: as ``read_pack`` does.
    """
    files: list[Path] = []
    _read(pack_path(pack), (), files)
    return tuple(files)


def _read(path: Path, above: tuple[Path, ...], files: list[Path] | None = None) -> RulePack:
    """Read one file; ``above`` are the files that led here, ``files`` collects what was read."""
    where = path.resolve()
    if where in above:
        circle = " -> ".join(map(str, (*above[above.index(where) :], where)))
        raise RulePackError(f"rule pack {path}: packs extend each other in a circle, {circle}; cut it at one of them")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise RulePackError(f"rule pack {path}: cannot be read as UTF-8 text ({exc}); check the file") from exc
    loaded = load_pack(text, str(path), lambda name: _read(_extended(name, path), (*above, where), files))
    if files is not None:
        files.append(path)
    return loaded


def _extended(name: str, path: Path) -> Path:
    """Return the file that ``extends: name`` in ``path`` means: one beside it, else a shipped pack."""
    beside = path.parent / name
    for file in (beside / "pack.yaml", beside):
        if file.is_file():
            return file
    try:
        return pack_path(name)
    except RulePackError as exc:
        raise RulePackError(f"{path}: 'extends': {exc}") from exc
