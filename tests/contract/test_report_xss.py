"""The report of a hostile run, opened in a real browser: nothing of it runs, nothing is loaded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from safer_ray.records import Lineage, Message, Outcome, Prompt, StepPair
from safer_ray.report import write_report
from safer_ray.tables import to_table, write_table

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MARK = "pwned"
"""What every payload tries to put into the page's title, or to fetch from the address HERE."""
CORPUS = tuple(
    line
    for line in (Path(__file__).parent / "xss_corpus.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
LEAST = 40


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: install chromium to open the report of a hostile run in it")
    return found


class Trap:
    """A server on this machine that counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        trap = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap.asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<title>fetched</title>")

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap()
    yield made
    made.close()


def opened(browser: str, page: Path, profile: Path) -> str:
    """Return the document as the browser has it once scripts have run."""
    result = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
         "--virtual-time-budget=4000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def title_of(dom: str) -> str:
    found = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert found
    return found[1]


def hostile_run(root: Path, payloads: tuple[str, ...]) -> Path:
    """Write a run directory in which every text anybody could have written is a payload."""
    everything = " ".join(payloads)
    prompts = [
        Prompt(
            prompt_id=f"p{at}{text}",
            messages=(Message(role="system", content=text), Message(role="user", content=text)),
            label=("unsafe", "safe", "unknown")[at % 3],  # type: ignore[arg-type]
            category=text,
            form=text,
            source=text,
        )
        for at, text in enumerate(payloads)
    ]
    outcomes = [
        Outcome(
            prompt_id=prompt.prompt_id, checkpoint="erpo-1", policy_version=1, judge=everything, refusal="none",
            complied=True, well_formed=True, truncated=False, cited_rule=prompt.text, consistent=None,
            reasoning_tokens=3, text=prompt.text, response=prompt.text,
        )
        for prompt in prompts
    ]  # fmt: skip
    lineage = Lineage(
        judge=everything, rule_pack_hash="x", sampler=everything, temperature=1.0, top_p=1.0, reference="fixed", round=1
    )
    pair = StepPair(
        pair_id="x", prompt_id="x", step_index=3, step_kind="response", axis="safety", prompt_ids=(1,), prefix_ids=(2,),
        chosen_ids=(3,), rejected_ids=(4,), chosen_text="x", rejected_text="x", margin=1.0, policy_version=1,
        lineage=lineage,
    )  # fmt: skip
    pairs = [
        replace(pair, pair_id=p.prompt_id, prompt_id=p.prompt_id, chosen_text=p.text, rejected_text=p.text,
                prefix_text=p.text)
        for p in prompts
    ]  # fmt: skip
    summary = {
        "name": everything, "model": everything, "stages": [{"name": everything, "wall_s": 1.0}],
        "rule_pack": {"name": everything, "version": everything, "hash": everything,
                      "categories": {text: text for text in payloads}},
        "training": [{"stage": text, "step": 1, "loss": 1.0} for text in payloads], "machine": {"platform": everything},
        "traces": {"accepted": 1, "rejected": {everything: 3}}, "versions": {everything: everything},
        "dropped": [{"reason": text} for text in payloads],
    }  # fmt: skip
    write_table(to_table(prompts, Prompt), root / "prompts.arrow")
    write_table(to_table(outcomes, Outcome), root / "evaluations" / "erpo-1.arrow")
    write_table(to_table(pairs, StepPair), root / "rounds" / "round-001" / "pairs.arrow")
    (root / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (root / "config.json").write_text(json.dumps({everything: everything}), encoding="utf-8")
    return write_report(root)


def test_the_corpus_is_large_and_every_payload_tries_something() -> None:
    assert len(set(CORPUS)) >= LEAST
    assert [text for text in CORPUS if MARK not in text and "HERE" not in text] == []


def test_the_browser_would_run_a_payload_that_is_not_escaped(browser: str, trap: Trap, tmp_path: Path) -> None:
    page = tmp_path / "naked.html"
    page.write_text(f"<title>calm</title><body>{CORPUS[0]}<img src={trap.address}/x>", encoding="utf-8")
    assert title_of(opened(browser, page, tmp_path / "profile")) == MARK
    assert trap.asked != []


def test_nothing_of_a_hostile_run_is_run_or_loaded(browser: str, trap: Trap, tmp_path: Path) -> None:
    report = hostile_run(tmp_path / "run", tuple(text.replace("HERE", trap.address) for text in CORPUS))
    page = report.with_name("opened.html")
    page.write_text(re.sub(r"<details(?=[ >])", "<details open", report.read_text(encoding="utf-8")), encoding="utf-8")
    for at, shown in enumerate((report, page)):
        dom = opened(browser, shown, tmp_path / f"profile-{at}")
        assert not re.fullmatch(rf"\s*{MARK}\s*", title_of(dom))
        assert dom.count("<script") == report.read_text(encoding="utf-8").count("<script")
    assert trap.asked == []
