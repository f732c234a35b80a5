"""Ray's real autoscaler adds and removes sampler nodes as the work comes and goes; only the nodes are fake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from tiny_runs import events_of

from safer_ray.core.events import Dropped, Published
from safer_ray.rundir import RunDir

HERE = Path(__file__).parent
HEAD_ID = "f" * 51 + "00000"
START_DEADLINE_S = 90.0
RUN_DEADLINE_S = 280.0
pytestmark = pytest.mark.timeout(420)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(address: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return clean | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), clean.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]),
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-for-one-autoscaled-cluster-only",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }


@pytest.fixture
def autoscaled(tmp_path: Path) -> Iterator[str]:
    """The address of a head without any sampler node, watched over by the autoscaler."""
    session, port = tempfile.mkdtemp(prefix="ra"), free_port()  # short, because it holds unix sockets
    host = ray.util.get_node_ip_address()
    address = f"{host}:{port}"
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text((HERE / "fake_nodes.yaml").read_text().replace("GCS_ADDRESS", address))
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"]
    words += [f"--port={port}", f"--autoscaling-config={nodes}", "--num-cpus=2"]
    words += [f"--ray-client-server-port={free_port()}", "--object-store-memory=80000000", f"--temp-dir={session}"]
    head_only = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    with (tmp_path / "head.log").open("wb") as log:
        head = subprocess.Popen(
            words, env=environment(address) | head_only, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for((host, port), head, tmp_path / "head.log")
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            head.kill()
        for process in psutil.process_iter(["cmdline"]):  # only what names this session directory
            if any(session in word for word in process.info["cmdline"] or ()):
                process.kill()
        shutil.rmtree(session, ignore_errors=True)


def wait_for(address: tuple[str, int], head: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < end and head.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(address) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"the head did not start:\n{log.read_text()[-2000:]}")


def test_sampler_nodes_go_from_none_to_three_and_back_to_none(autoscaled: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "autoscaled_run.py"), str(tmp_path / "run")],
        env=environment(autoscaled),
        capture_output=True,
        text=True,
        timeout=RUN_DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts[0] == counts[-1] == 0
    assert max(counts) == 3
    run_dir = RunDir(tmp_path / "run")
    summary = json.loads(run_dir.summary.read_text())
    assert summary["finished"]
    assert summary["lost_prompts"] == summary["duplicate_prompts"] == 0
    events = events_of(run_dir)
    assert not [event for event in events if isinstance(event, Dropped)]
    # While it trained nobody sampled: the samplers after it were started on the weights it published.
    assert [event.version for event in events if isinstance(event, Published)] == [1]
    assert 0 in counts[1:-1], "the pool never drained while the learner trained"
