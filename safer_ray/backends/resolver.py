"""Which substance a notation means, and whether a treaty controls it: the same for every way to write it.

The list beside a pack, ``substances.tsv``, holds an InChIKey, a schedule and digests per substance: no structure and
no name can be read from it. Structures in a prompt are read with RDKit (extra ``science``), and compared by the first
block of their InChIKey, so that salts, isotopes and missing stereo marks make no difference. Each notation of a listed
substance is replaced by the same words, so that rules and classifier see the same text.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from safer_ray.core.notation import Candidate, Notation, candidates, digest, hill
from safer_ray.errors import RulePackError

logger = logging.getLogger(__name__)
FILE_NAME = "substances.tsv"
_COMMON = "a common household substance"
_BLOCK_CHARS = 14
_NO_SCHEDULE = "-"
_MAX_CHARS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Substance:
    """A listed substance found in a text: where, in which notation, and the schedule it is on, "" for none."""

    notation: Notation
    start: int
    stop: int
    text: str
    schedule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubstanceList:
    """What is listed: first block of an InChIKey -> schedule, digest -> schedule; "" is a common substance of none.

    A digest that stands for substances of different standing, as a formula can, is left out.
    """

    by_block: dict[str, str] = field(default_factory=dict)
    by_digest: dict[str, str] = field(default_factory=dict)
    content_hash: str = ""


def read_substances(paths: Iterable[Path]) -> SubstanceList:
    """Read the lists of a pack and the packs it extends.

    Raises:
        RulePackError: naming the line that is not ``InChIKey, schedule, digests`` between tabs.
    """
    by_block: dict[str, str] = {}
    standings: dict[str, set[str]] = {}
    content = hashlib.sha256()
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line or line.startswith("#"):
                continue
            cells = line.split("\t")
            if len(cells) != 3 or len(cells[0]) != 27:
                raise RulePackError(f"{path}:{number}: need an InChIKey, a schedule and digests between tabs")
            content.update(line.encode())
            schedule = "" if cells[1] == _NO_SCHEDULE else cells[1]
            by_block[cells[0][:_BLOCK_CHARS]] = schedule
            for each in cells[2].split():
                standings.setdefault(each, set()).add(schedule)
    sure = {each: next(iter(found)) for each, found in standings.items() if len(found) == 1}
    return SubstanceList(by_block=by_block, by_digest=sure, content_hash=content.hexdigest() if by_block else "")


class Resolver:
    """Finds listed substances in texts. Without RDKit, SMILES and InChI are not read; ``reads_structures`` says so."""

    def __init__(self, listed: SubstanceList) -> None:
        self._listed = listed
        self.reads_structures = importlib.util.find_spec("rdkit") is not None
        if listed.by_block and not self.reads_structures:
            logger.warning("resolver: SMILES and InChI are not read; pip install 'safer-ray[science]' for them")

    @property
    def list_hash(self) -> str:
        """SHA-256 of the list, "" if it is empty."""
        return self._listed.content_hash

    def find(self, text: str) -> list[Substance]:
        """Return the listed substances in ``text`` in order, none overlapping; only the first 20,000 characters."""
        if not self._listed.by_block:
            return []
        found: list[Substance] = []
        for each in candidates(text[:_MAX_CHARS]):
            if any(each.start < other.stop and other.start < each.stop for other in found):
                continue
            schedule = self._schedule(each)
            if schedule is not None:
                found.append(
                    Substance(
                        notation=each.notation, start=each.start, stop=each.stop, text=each.text, schedule=schedule
                    )
                )
        return sorted(found, key=lambda each: each.start)

    def plain(self, text: str) -> tuple[str, list[Substance]]:
        """Return ``text`` with each listed substance in the words that all its notations share, and what was found."""
        found = self.find(text)
        parts: list[str] = []
        start = 0
        for each in found:
            parts += [text[start : each.start], f"a substance of the {each.schedule}" if each.schedule else _COMMON]
            start = each.stop
        return "".join([*parts, text[start:]]), found

    def _schedule(self, each: Candidate) -> str | None:
        """Return the schedule, "" for a common substance, None for what is not listed."""
        match each.notation:
            case "inchikey":
                return self._listed.by_block.get(each.text[:_BLOCK_CHARS])
            case "inchi" | "smiles":
                return self._of_structure(each) if self.reads_structures else None
            case "formula":
                return self._listed.by_digest.get(digest("formula", hill(each.text)))
            case "cas":
                return self._listed.by_digest.get(digest("cas", each.text))
            case "name":
                return self._listed.by_digest.get(digest("name", " ".join(each.text.lower().split())))

    def _of_structure(self, each: Candidate) -> str | None:
        from rdkit import Chem, rdBase

        with rdBase.BlockLogs():
            molecule = Chem.MolFromInchi(each.text) if each.notation == "inchi" else Chem.MolFromSmiles(each.text)
            if molecule is None or not molecule.GetNumAtoms():
                return None
            parts = [molecule, *Chem.GetMolFrags(molecule, asMols=True)]
            blocks = [Chem.MolToInchiKey(part)[:_BLOCK_CHARS] for part in parts]
        standings = [self._listed.by_block[block] for block in blocks if block in self._listed.by_block]
        # a controlled part makes the whole controlled; a counter-ion alone does not make it common
        controlled = next((schedule for schedule in standings if schedule), None)
        return controlled or (standings[0] if blocks[0] in self._listed.by_block else None)
