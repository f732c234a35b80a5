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
    """Read the rule pack that ``pack`` names.

    Raises:
        RulePackError: if it is not found, not readable, or does not load.
    """
    path = pack_path(pack)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise RulePackError(f"rule pack {path}: cannot be read as UTF-8 text ({exc}); check the file") from exc
    return load_pack(text, str(path))
