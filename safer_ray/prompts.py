"""Prompt sources: JSONL, CSV and Parquet files, Hugging Face datasets and the prompts of a shipped rule pack.

A row that cannot be a prompt is data, too: it is yielded as a ``BadRow`` that names its file and line, and
``load_prompts`` stops the run only when there are too many of them. A source that cannot be read at all is
a ``DataError``.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safer_ray.config import PromptSource
from safer_ray.errors import DataError, boundary
from safer_ray.records import LABELS, NO_RULE, Label, Message, Prompt

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Cell = tuple[str, Row | str]
"""Where a row stands, with its columns or, where it could not be read, the reason."""

COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "text": ("prompt", "text", "question", "instruction", "goal", "messages"),
    "id": ("id", "prompt_id"),
    "label": ("label",),
    "category": ("category",),
    "form": ("form",),
    "split": ("split",),
}
"""Our field -> the column names it is looked for under, in this order, when the source names none."""
LABEL_ALIASES: dict[str, Label] = {"harmful": "unsafe", "benign": "safe", "harmless": "safe"}
_BAD_ROWS_NAMED = 3
_MOST_LINE_BYTES = 16 << 20
_MOST_CHARACTERS = 1_000_000
"""A prompt longer than this fits no model's context; it is a file that was pasted into a cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be a prompt: where it stands (file:line) and why it was skipped."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """What the sources hold: prompts in source order with unique ids, and the rows that were skipped."""

    prompts: tuple[Prompt, ...]
    bad_rows: tuple[BadRow, ...] = ()


def load_prompts(sources: Iterable[PromptSource], max_bad_share: float) -> PromptSet:
    """Read every source.

    Raises:
        DataError: if a source cannot be read, more than ``max_bad_share`` of the rows are malformed, an id
            stands twice, or no prompt is left.
    """
    prompts: list[Prompt] = []
    bad: list[BadRow] = []
    first_seen: dict[str, str] = {}
    for source in sources:
        for where, item in _located(source):
            if isinstance(item, BadRow):
                logger.warning("skipped a row where=%s reason=%s", item.where, item.reason)
                bad.append(item)
                continue
            if item.prompt_id in first_seen:
                earlier = first_seen[item.prompt_id]
                raise DataError(f"{where}: id {item.prompt_id!r} is taken by {earlier}; give every prompt its own id")
            first_seen[item.prompt_id] = where
            prompts.append(item)
    share = len(bad) / max(1, len(bad) + len(prompts))
    if share > max_bad_share:
        named = "; ".join(f"{row.where}: {row.reason}" for row in bad[:_BAD_ROWS_NAMED])
        raise DataError(
            f"prompts: {len(bad)} of {len(bad) + len(prompts)} rows are malformed, more than the allowed share "
            f"{max_bad_share:g} (prompts.max_bad_share); mend them, first {named}"
        )
    if not prompts:
        raise DataError("prompts: the sources hold no prompt; check prompts.sources and their split")
    return PromptSet(prompts=tuple(prompts), bad_rows=tuple(bad))


def read_prompts(source: PromptSource) -> Iterator[Prompt | BadRow]:
    """Yield the prompts of one source in order, with a ``BadRow`` in place of each row that is none.

    Raises:
        DataError: if the source is missing, unreadable, of an unknown kind, or lacks a text column.
    """
    for _, item in _located(source):
        yield item


def read_rows(source: PromptSource) -> Iterator[Row]:
    """Yield the rows of one source as they stand, without those that cannot be read.

    Raises:
        DataError: as ``read_prompts`` does.
    """
    return (row for _, row in _cells(source) if not isinstance(row, str))


def shipped_pack(name: str) -> Path:
    """Return the folder of a rule pack that comes with the product, in a checkout as in an installed wheel.

    Raises:
        DataError: naming the packs there are.
    """
    package = Path(__file__).resolve().parent
    roots = [root for root in (package / "shipped" / "rule_packs", package.parent / "rule_packs") if root.is_dir()]
    for root in roots:
        if (root / name).is_dir() and Path(name).name == name:
            return root / name
    known = sorted({entry.name for root in roots for entry in root.iterdir() if entry.is_dir()})
    raise DataError(f"rule pack {name!r} is not shipped; shipped are: {', '.join(known) or 'none'}")


def _located(source: PromptSource) -> Iterator[tuple[str, Prompt | BadRow]]:
    unknown = sorted(set(source.columns) - set(COLUMN_NAMES))
    if unknown:
        raise DataError(f"{source.path}: columns names {unknown[0]!r}; known fields are {', '.join(COLUMN_NAMES)}")
    for position, (where, row) in enumerate(_cells(source), start=1):
        if isinstance(row, str):
            yield where, BadRow(where=where, reason=row)
            continue
        try:
            prompt = _to_prompt(source, row, position)
        except ValueError as exc:
            yield where, BadRow(where=where, reason=str(exc))
            continue
        if prompt is not None:
            yield where, prompt


def _cells(source: PromptSource) -> Iterator[Cell]:
    scheme, _, rest = source.path.partition(":")
    if scheme == "hf":
        return _hf_cells(source, rest)
    if scheme == "shipped":
        folder = shipped_pack(rest) / "prompts"
        files = sorted(path for path in folder.glob("*.jsonl") if not path.stem.endswith("_answers"))
        return (cell for path in files for cell in _jsonl_cells(path))
    path = Path(source.path)
    if path.suffix not in _READERS:
        raise DataError(
            f"{source.path}: not a prompt source; give {', '.join(_READERS)}, hf:OWNER/NAME or shipped:NAME"
        )
    if not path.is_file():
        raise DataError(f"{source.path}: no such file; check the path in prompts.sources")
    return _READERS[path.suffix](path, source)


def _jsonl_cells(path: Path, _source: PromptSource | None = None) -> Iterator[Cell]:
    with boundary(DataError, str(path)), path.open("rb") as stream:
        for line_number, raw in enumerate(_bounded_lines(stream), start=1):
            where = f"{path}:{line_number}"
            if len(raw) > _MOST_LINE_BYTES:
                yield where, f"the line is longer than {_MOST_LINE_BYTES >> 20} MiB"
                continue
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8-sig" if line_number == 1 else "utf-8"))
            except UnicodeDecodeError:
                yield where, "the line is not UTF-8"
            except (ValueError, RecursionError) as exc:
                yield where, f"the line is not JSON ({exc})"
            else:
                yield where, row if isinstance(row, dict) else "the line is not a JSON object"


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines; of one that is too long, only so much as shows that it is."""
    while line := stream.readline(_MOST_LINE_BYTES + 1):
        yield line
        while len(line) > _MOST_LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(_MOST_LINE_BYTES + 1)
            if not line:
                return


def _csv_cells(path: Path, source: PromptSource) -> Iterator[Cell]:
    # surrogateescape keeps a row with broken bytes readable; _clean refuses it by itself
    with (
        boundary(DataError, str(path)),
        path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream,
    ):
        reader = csv.reader(stream)
        header = next(reader, [])
        _require_text_column(source, header)
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as exc:
                yield where, f"the row is not CSV ({exc})"
                continue
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(header):
                yield where, f"the row has {len(cells)} cells, the header {len(header)}"
                continue
            yield where, dict(zip(header, cells, strict=True))


def _parquet_cells(path: Path, source: PromptSource) -> Iterator[Cell]:
    import pyarrow.parquet

    with boundary(DataError, f"{path}: cannot be read as Parquet; write the file again"):
        file = pyarrow.parquet.ParquetFile(path)
        _require_text_column(source, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row


def _hf_cells(source: PromptSource, name: str) -> Iterator[Cell]:
    split = source.split or "train"
    if not (re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or (name and Path(name).is_dir())):
        raise DataError(f"hf:{name}: not the name of a data set; write hf:OWNER/NAME or hf:DIRECTORY")
    with boundary(DataError, f"Hugging Face dataset {name} (subset {source.subset}, split {split})"):
        import datasets

        data = datasets.load_dataset(name, source.subset, split=split)
        _require_text_column(source, data.column_names)
        for number, row in enumerate(data, start=1):
            yield f"hf:{name}/{split} row {number}", row


_READERS: dict[str, Callable[[Path, PromptSource], Iterator[Cell]]] = {
    ".jsonl": _jsonl_cells,
    ".csv": _csv_cells,
    ".parquet": _parquet_cells,
}


def _require_text_column(source: PromptSource, names: Sequence[str]) -> None:
    wanted = _names_of(source, "text")
    if not set(wanted) & set(names):
        raise DataError(
            f"{source.path}: no column {' or '.join(wanted)}; it has {', '.join(names) or 'none'}: "
            "name the right one as columns.text"
        )


def _names_of(source: PromptSource, field: str) -> tuple[str, ...]:
    return (source.columns[field],) if field in source.columns else COLUMN_NAMES[field]


def _to_prompt(source: PromptSource, row: Row, position: int) -> Prompt | None:
    """Return the prompt of a row, or None if the row belongs to another split than the one asked for.

    Raises:
        ValueError: saying why the row is no prompt.
    """
    values = {field: _first(row, _names_of(source, field)) for field in COLUMN_NAMES}
    names = _names_of(source, "text")
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        raise ValueError(
            f"missing: no text under {' or '.join(names)}; the row has {', '.join(map(str, row)) or 'nothing'}"
        )
    messages = _messages(values.pop("text"), found)
    text = {field: _clean(value, field) for field, value in values.items()}
    # for hf the split was chosen when loading, so a column of that name is not asked again
    split = source.split if source.path.startswith("hf:") and source.split else text["split"] or "train"
    if source.split is not None and split != source.split:
        return None
    return Prompt(
        prompt_id=text["id"] or f"{Path(source.path.partition(':')[2] or source.path).stem}-{position}",
        messages=messages,
        label=_label(text["label"], source.label),
        category=text["category"] or source.category or NO_RULE,
        form=text["form"] or "unknown",
        source=source.path,
        split=source.as_split or split,
    )


def _first(row: Row, names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _clean(value: Any, field: str) -> str:
    """Return a cell as stripped text, "" if it is missing; refuse what cannot be written as UTF-8."""
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise ValueError(f"{field} is a {type(value).__name__}, not text")
    text = str(value).strip()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ValueError(f"{field} is not UTF-8") from exc
    return text


def _label(text: str, default: Label | None) -> Label:
    if not text:
        return default or "unknown"
    label = LABEL_ALIASES.get(text.lower(), text.lower())
    for known in LABELS:
        if label == known:
            return known
    raise ValueError(f"label {text!r} is not one of {', '.join((*LABELS, *LABEL_ALIASES))}")


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    turns = value if isinstance(value, list | tuple) else [{"role": "user", "content": value}]
    if not turns:
        raise ValueError(f"{column} holds no message")
    out = []
    for turn in turns:
        role = turn.get("role") if isinstance(turn, dict) else None
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"{column} holds a turn that is no message with a role")
        if not isinstance(turn.get("content"), str):
            raise ValueError(f"{column} is not text")
        out.append(Message(role=role, content=_clean(turn["content"], column)))
    if out[-1].role != "user":
        raise ValueError(f"{column} does not end with a user message")
    if not any(letter.isprintable() and not letter.isspace() for letter in out[-1].content):
        raise ValueError(f"{column} is empty, or holds nothing that can be seen")
    length = sum(len(message.content) for message in out)
    if length > _MOST_CHARACTERS:
        raise ValueError(f"{column} has {length} characters, more than {_MOST_CHARACTERS}")
    return tuple(out)
