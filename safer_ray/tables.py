"""Records as versioned Arrow tables.

Each record type has one schema named ``kind/version``, kept in the table's metadata. Reading refuses a
schema it does not know and a null where none is allowed (pyarrow itself enforces neither).
Files are Arrow IPC, written aside and renamed, so a half-written file never carries the final name.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from safer_ray.errors import DataError, JournalError
from safer_ray.records import Outcome, Prompt, Rollout, SampleRequest, StepPair, TraceExample, Verdict

Record = TypeVar("Record", Prompt, SampleRequest, Rollout, Verdict, StepPair, TraceExample, Outcome)
KINDS: dict[type, str] = {
    Prompt: "prompts/1",
    SampleRequest: "requests/1",
    Rollout: "rollouts/1",
    Verdict: "verdicts/1",
    StepPair: "pairs/1",
    TraceExample: "traces/2",
    Outcome: "outcomes/1",
}
_SCALARS: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def leave_pandas_out() -> None:
    """Tell pyarrow, before its first conversion, that there is no pandas; for processes that convert records only.

    That conversion asks whether it was given a Series, and imports pandas to know: 1.3 s and 46 MiB in every worker.
    A pandas too old to work with is one that pyarrow does without; ``to_pandas`` fails in this process afterwards.
    """
    if "pandas" in sys.modules:
        return
    too_old: Any = ModuleType("pandas")
    too_old.__version__ = "0.0"
    sys.modules["pandas"] = too_old
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pa.array([None])
    finally:
        del sys.modules["pandas"]


_HINTS: dict[Any, dict[str, Any]] = {}
"""Resolved annotations by record: resolving them anew for every row takes longer than reading the row."""


def _hints(record: Any) -> dict[str, Any]:
    if record not in _HINTS:
        _HINTS[record] = get_type_hints(record)
    return _HINTS[record]


def _arrow_type(hint: Any) -> tuple[pa.DataType, bool]:
    """Return the Arrow type of an annotation and whether it may be null."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        inner = next(arg for arg in args if arg is not NoneType)
        return _arrow_type(inner)[0], True
    if origin is Literal:
        return pa.string(), False
    if origin is tuple:
        return pa.list_(pa.field("item", _arrow_type(args[0])[0], nullable=False)), False
    if is_dataclass(hint):
        return pa.struct(_fields_of(hint)), False
    return _SCALARS[hint], False


def _fields_of(record: Any) -> list[pa.Field]:
    hints = _hints(record)
    out = []
    for item in fields(record):
        dtype, nullable = _arrow_type(hints[item.name])
        out.append(pa.field(item.name, dtype, nullable=nullable))
    return out


SCHEMAS: dict[str, pa.Schema] = {
    kind: pa.schema(_fields_of(record), metadata={"safer_ray": kind}) for record, kind in KINDS.items()
}


_FLAT = frozenset({str, int, float, bool, NoneType})


@cache
def _names(record: Any) -> tuple[str, ...]:
    """Return the fields of a record; none for what is not one."""
    return tuple(item.name for item in fields(record)) if is_dataclass(record) else ()


def _plain(value: Any) -> Any:
    kind: Any = type(value)
    if kind in _FLAT:
        return value
    if isinstance(value, tuple):
        item: Any = type(value[0]) if value else str
        return [_plain(each) for each in value] if _names(item) else value
    names = _names(kind)
    return {name: _plain(getattr(value, name)) for name in names} if names else value


@cache
def _reviver(hint: Any) -> Callable[[Any], Any] | None:
    """Return what makes a field of a record from a value of Arrow; None where the value is the field."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        inner = _reviver(next(arg for arg in args if arg is not NoneType))
        return inner and (lambda value: None if value is None else inner(value))
    if origin is tuple:
        each = _reviver(args[0])
        return tuple if each is None else (lambda items: tuple(map(each, items)))
    if not is_dataclass(hint):
        return None
    parts = [(name, _reviver(part)) for name, part in _hints(hint).items()]
    make: Callable[..., Any] = hint  # type: ignore[assignment]
    return lambda value: make(**{name: part(value[name]) if part else value[name] for name, part in parts})


def to_table(records: Iterable[Record], kind: type[Record]) -> pa.Table:
    """Return the records as one table of ``kind``'s schema."""
    schema, rows = SCHEMAS[KINDS[kind]], list(records)
    columns = []
    for field in schema:
        values: list[Any] = list(map(attrgetter(field.name), rows))
        columns.append(pa.array(list(map(_plain, values)) if _holds_records(field.type) else values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _holds_records(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_struct(dtype.value_type if pa.types.is_list(dtype) else dtype))


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _nulls(column: pa.ChunkedArray, field: pa.Field) -> int:
    """Count the nulls of the field if it allows none, else those of what is inside it."""
    if not field.nullable and column.null_count:
        return int(column.null_count)
    if pa.types.is_list(field.type):
        return _nulls(pc.list_flatten(column), field.type.value_field)
    if pa.types.is_struct(field.type):
        return sum(_nulls(pc.struct_field(column, [at]), part) for at, part in enumerate(field.type))
    return 0


def from_table(table: pa.Table, kind: type[Record]) -> list[Record]:
    """Return the records of a table.

    Raises:
        DataError: if the table is of another kind or version, has other columns, or a null where none may be.
    """
    want = KINDS[kind]
    have = (table.schema.metadata or {}).get(b"safer_ray", b"nothing safer_ray knows").decode()
    if have != want:
        raise DataError(f"table: this is {have}, but {want} was expected; use the reader of that kind")
    schema = SCHEMAS[want]
    if (table.schema.names, table.schema.types) != (schema.names, schema.types):
        raise DataError(f"table {want}: columns are {_described(table.schema)}, not {_described(schema)}")
    for column in schema:
        nulls = _nulls(table[column.name], column)
        if nulls:
            raise DataError(f"table {want}: column {column.name} has {nulls} nulls; it allows none")
    names, columns = schema.names, []
    try:
        for name in names:
            values, revive = table[name].to_pylist(), _reviver(_hints(kind)[name])
            columns.append([revive(value) for value in values] if revive else values)
        return [kind(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
    except (TypeError, ValueError) as exc:
        raise DataError(f"table {want}: a row breaks what must hold of it: {exc}") from exc


def write_table(table: pa.Table, path: Path) -> str:
    """Write one Arrow IPC file durably - aside, flushed to disk, renamed - and return its content digest."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    write_whole(content, path)
    return content_digest(content)


def write_whole(content: Any, path: Path) -> None:
    """Write bytes so that the file appears whole or not at all, also after a power failure.

    Raises:
        JournalError: if the disk refuses; that is no fault of a prompt, so it ends the run.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name is durable, too
        finally:
            os.close(folder)
    except OSError as exc:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise JournalError(f"shard {path}: cannot be written ({exc.strerror}); free space, then --resume") from exc


def content_digest(content: Any) -> str:
    """Return the 128-bit digest of bytes that names content in the run directory."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_digest(path: Path) -> str | None:
    """Return the content digest of a file, None if it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as source:
            while block := source.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def read_table(path: Path) -> pa.Table:
    """Read one Arrow IPC file.

    Raises:
        DataError: if it is missing, truncated or not Arrow IPC.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except FileNotFoundError as exc:
        raise DataError(f"shard {path}: no such file; was the run directory moved?") from exc
    except (pa.ArrowInvalid, OSError) as exc:
        raise DataError(f"shard {path}: not a whole Arrow file ({exc}); delete it and resume") from exc


def concat(tables: Sequence[pa.Table], kind: type[Record]) -> pa.Table:
    """Concatenate tables of one kind; no tables give an empty one."""
    return pa.concat_tables(tables) if tables else to_table([], kind)


_BUNDLE = pa.schema(
    [pa.field("kind", pa.string(), nullable=False), pa.field("stream", pa.binary(), nullable=False)],
    metadata={"safer_ray": "bundle/1"},
)


def write_bundle(tables: Sequence[pa.Table], path: Path) -> None:
    """Write several tables, each of its own kind, as one file that appears whole or not at all."""
    write_whole(_bundled(tables), path)


def write_shard(tables: Sequence[pa.Table], path: Path) -> str:
    """Write a bundle named after its content, ``STEM-DIGEST.arrow``, and return the digest.

    Two writers of the same item so never overwrite each other: the journal says whose file counts.
    """
    content = _bundled(tables)
    digest = content_digest(content)
    write_whole(content, shard_path(path, digest))
    return digest


def _bundled(tables: Sequence[pa.Table]) -> pa.Buffer:
    rows = []
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        rows.append({"kind": table.schema.metadata[b"safer_ray"].decode(), "stream": sink.getvalue().to_pybytes()})
    whole = pa.BufferOutputStream()
    with pa.ipc.new_file(whole, _BUNDLE) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=_BUNDLE))
    return whole.getvalue()


def shard_path(path: Path, digest: str) -> Path:
    """Return where the bundle of ``digest`` meant for ``path`` lies; runs of older versions have no digest."""
    return path.with_name(f"{path.stem}-{digest}{path.suffix}") if digest else path


def read_bundle(path: Path) -> dict[str, pa.Table]:
    """Return the tables of a bundle by kind; several of one kind come back as one.

    Raises:
        DataError: if the file is missing, torn, or no bundle.
    """
    table = read_table(path)
    if table.schema != _BUNDLE:
        raise DataError(f"shard {path}: not a bundle of tables; was it written by another version?")
    found: dict[str, list[pa.Table]] = {}
    for row in table.to_pylist():
        found.setdefault(row["kind"], []).append(pa.ipc.open_stream(row["stream"]).read_all())
    return {kind: pa.concat_tables(parts) for kind, parts in found.items()}
