"""A checkpoint of the loop under stock ``vllm serve`` with a stock reasoning parser."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_runs import RealRun

from safer_ray.records import TraceExample
from safer_ray.tables import from_table, read_table

START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 30.0
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # a few small functions are compiled even with --enforce-eager
}
LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """A serving process and where it listens."""

    url: str
    model: Path

    def ask(self, question: str) -> tuple[int, dict[str, Any]]:
        """Return status and answer of one chat completion."""
        body = {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": question},
            ],
            "max_tokens": 400,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with LOOPBACK.open(request, timeout=60) as reply:
            return reply.status, json.load(reply)


def _command(model: Path, port: int) -> list[str]:
    return [
        # What `vllm serve` starts; the CPU wheel's own `vllm` command looks for a package named vllm and stops.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"),
        *("--reasoning-parser", "deepseek_r1", "--enforce-eager", "--dtype", "bfloat16"),
        *("--max-model-len", "1024", "--max-num-seqs", "4"),
    ]


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with LOOPBACK.open(f"{url}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started, each by its id."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
    _, alive = psutil.wait_procs(family, timeout=STOP_DEADLINE_S)
    for each in alive:
        each.kill()


@pytest.fixture(scope="module")
def server(real_run: RealRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model, log = real_run.run_dir.checkpoint("sft"), tmp_path_factory.mktemp("serve") / "serve.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            _command(model, port), env=os.environ | ENVIRONMENT, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
        yield Server(url=f"http://127.0.0.1:{port}", model=model)
    finally:
        _stop(process)


def test_a_stock_server_answers_and_strips_the_reasoning(server: Server, real_run: RealRun) -> None:
    taught = {example.prompt_id for example in from_table(read_table(real_run.run_dir.traces), TraceExample)}
    question = next(prompt.text for prompt in real_run.prep.by_phase["teach"] if prompt.prompt_id in taught)
    status, reply = server.ask(question)
    assert status == 200
    [choice] = reply["choices"]
    said = choice["message"]
    assert "<assessment>" in (said.get("reasoning") or said.get("reasoning_content"))
    assert "think>" not in (said["content"] or "")
