"""What an audit of judges found, as one self-contained HTML page and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safer_ray.core.judge_audit import REFUSALS, JudgeAudit
from safer_ray.errors import DataError
from safer_ray.report import page_environment, template_text


def audit_json(audits: Sequence[JudgeAudit], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the audits as JSON values; disagreements name answers by id, their text stays in the labels file."""
    rows = []
    for audit in audits:
        row = asdict(audit)
        row["disagreements"] = [
            {"id": each.answer.answer_id, "by_hand": each.answer.refusal, "read": each.read, "error": each.error}
            for each in audit.disagreements
        ]
        rows.append(row)
    return {**facts, "judges": rows}


def write_audit(audits: Sequence[JudgeAudit], out: Path, *, labels: str) -> tuple[Path, Path]:
    """Write ``judges.html`` and ``judges.json`` into ``out`` and return their paths.

    Raises:
        DataError: if they cannot be written.
    """
    environment = page_environment()
    page = environment.get_template("audit.html.j2").render(
        audits=audits,
        labels=labels,
        n=audits[0].n,
        columns=(*REFUSALS, "unread"),
        style=template_text(environment, "report.css"),
    )
    found = json.dumps(audit_json(audits, {"labels": labels}), indent=1, ensure_ascii=False, allow_nan=False)
    return write_aside(out / "judges.html", page), write_aside(out / "judges.json", found + "\n")


def write_aside(path: Path, text: str) -> Path:
    """Write a text aside and rename it, so that no half of it is ever read.

    Raises:
        DataError: if it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(text.encode("utf-8", errors="replace"))
        aside.replace(path)
    except OSError as exc:
        raise DataError(f"{path}: cannot be written ({exc.strerror}); choose another --out") from exc
    return path
