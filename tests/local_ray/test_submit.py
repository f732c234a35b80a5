"""The Jobs API wrapper against a cluster started with ``ray start`` and token authentication."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tiny_runs import SMALL

from safer_ray.cluster.jobs_api import dashboard_url, job_file, run_command, submit_command
from safer_ray.errors import ClusterError, ConfigError

TOKEN = "a-token-for-one-test-cluster-only"
START_DEADLINE_S = 90.0
START_TRIES = 3
STOP_DEADLINE_S = 30.0
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cluster:
    """A head node of its own session, and the environment that its clients need."""

    url: str
    environment: dict[str, str]


def _free_ports(count: int) -> list[int]:
    """Ports below those that connections of other processes take, so none is taken before Ray listens there."""
    free: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError(f"fewer than {count} of 1,000 ports are free")


def _environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    paths = [str(Path(sys.executable).parent), clean.get("PATH", "")]
    return clean | {
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _start_command(session_dir: str) -> list[str]:
    gcs, dashboard, client, agent, agent_grpc, runtime_env, metrics = _free_ports(7)
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
        *(f"--runtime-env-agent-port={runtime_env}", f"--metrics-export-port={metrics}"),
        *("--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={session_dir}"),
    ]


def _serves(url: str) -> bool:
    """Whether the cluster's node takes jobs; the dashboard answers seconds before it, also where it never will."""
    asked = urllib.request.Request(f"{url}/nodes?view=summary", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            nodes = json.load(answer)["data"]["summary"]
    except (OSError, http.client.HTTPException):
        return False
    return any(each["raylet"].get("state") == "ALIVE" for each in nodes)


def _processes_of(session_dir: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(session_dir in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


@contextlib.contextmanager
def _started() -> Iterator[Cluster | str]:
    """A cluster that takes jobs, or what it printed if it did not come up: ended with all its processes."""
    # Other Ray clusters may run on this machine: only what names this session directory is ever ended.
    session_dir = tempfile.mkdtemp(prefix="ray")  # short, because it holds unix sockets
    command = _start_command(session_dir)
    port = next(word for word in command if word.startswith("--dashboard-port=")).partition("=")[2]
    cluster = Cluster(url=f"http://127.0.0.1:{port}", environment=_environment())
    log = Path(session_dir) / "start.log"
    with log.open("wb") as output:
        head = subprocess.Popen(
            command, env=cluster.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_DEADLINE_S
        while not (up := _serves(cluster.url)) and time.monotonic() < deadline and head.poll() is None:
            time.sleep(0.2)
        yield cluster if up else log.read_text()[-2000:]
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            head.kill()
        for process in _processes_of(session_dir):
            process.kill()
        shutil.rmtree(session_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Where cores are short, Ray's own node gives up on its agents: that start is Ray's, so it has another try.
    for _ in range(START_TRIES):
        with _started() as started:
            if isinstance(started, Cluster):
                yield started
                return
    pytest.fail(f"the test cluster did not start {START_TRIES} times, at last:\n{started}")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "tiny.yaml").write_text("name: tiny\n")
    return tmp_path


CLIENT = """
import json, sys
from safer_ray.cluster.jobs_api import submit_command
from safer_ray.errors import ClusterError
command, url, folder, follow = json.loads(sys.argv[1])
log = []
try:
    result = submit_command(command, address=url, working_dir=folder, follow=log.append if follow else None)
    answer = {"status": result.status, "job_id": result.job_id, "log": "".join(log)}
except ClusterError as exc:
    answer = {"error": str(exc), "log": "".join(log)}
print("ANSWER" + json.dumps(answer))
"""


def _submit(cluster: Cluster, command: str, folder: Path, *, follow: bool = True, **environment: str) -> dict[str, str]:
    """Submit from a process of its own: Ray reads the authentication mode once per process."""
    arguments = json.dumps([command, cluster.url, str(folder), follow])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CLIENT), arguments],
        env=cluster.environment | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.rpartition("ANSWER")[2]))


def test_a_job_runs_in_the_uploaded_folder_and_its_log_arrives_once(cluster: Cluster, project: Path) -> None:
    (project / ".venv").mkdir()
    (project / ".venv" / "large").write_text("not uploaded")
    answer = _submit(cluster, "for i in 1 2 3; do echo line $i; sleep 0.4; done; find . -type f", project)
    assert answer.get("status") == "SUCCEEDED", answer
    assert answer["log"].count("line 2\n") == 1
    assert "./jobs/tiny.yaml" in answer["log"]
    assert ".venv" not in answer["log"]


def test_the_tiny_job_runs_through_the_jobs_api_and_leaves_its_result(cluster: Cluster, tmp_path: Path) -> None:
    job = job_file("tiny_fake", str(REPOSITORY))
    command = run_command(job, run_dir=str(tmp_path / "run"), overrides=SMALL)
    assert command.startswith("python -m safer_ray run jobs/tiny_fake.yaml ")
    answer = _submit(cluster, command, REPOSITORY)
    assert answer.get("status") == "SUCCEEDED", f"{answer.get('error')}\n{answer['log']}"
    assert "report.html" in answer["log"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [each["checkpoint"] for each in summary["evaluations"]] == ["base", "sft", "erpo-1", "erpo-2"]
    assert summary["lost_prompts"] == summary["duplicate_prompts"] == 0


def test_without_following_a_submission_returns_at_once(cluster: Cluster, project: Path) -> None:
    answer = _submit(cluster, "sleep 3", project, follow=False)
    assert answer.get("status") in ("PENDING", "RUNNING"), answer
    assert answer["job_id"]


def test_a_failed_job_is_one_sentence_that_names_the_job(cluster: Cluster, project: Path) -> None:
    answer = _submit(cluster, "echo before the end; exit 3", project)
    assert "before the end" in answer["log"]
    assert re.fullmatch(r"job raysubmit_\w+ failed: .*exit code 3; read its log with '[^\n]+'", answer["error"])


def test_a_client_without_the_token_is_told_so(cluster: Cluster, project: Path) -> None:
    answer = _submit(cluster, "true", project, RAY_AUTH_MODE="disabled")
    assert "refused the authentication token: set RAY_AUTH_MODE=token" in answer["error"]


def test_an_address_where_nothing_listens_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    [port] = _free_ports(1)
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at http://127.0.0.1:{port}"):
        submit_command("true", address=f"127.0.0.1:{port}", working_dir=str(project))


@pytest.mark.parametrize(
    "nasty", ["a; touch hacked", "$(touch hacked)", "`touch hacked`", "a' b \"c", "x\ny", "--help"]
)
def test_no_value_becomes_a_command(nasty: str, tmp_path: Path) -> None:
    command = run_command("jobs/tiny.yaml", run_dir="/runs/" + nasty, overrides=[f"name={nasty}"], resume=True)
    show = command.replace(
        "python -m safer_ray", f"{sys.executable} -c 'import json,sys;print(json.dumps(sys.argv[1:]))'"
    )
    done = subprocess.run(["bash", "-c", show], cwd=tmp_path, capture_output=True, text=True, check=True)
    words = json.loads(done.stdout)
    assert words == ["run", "jobs/tiny.yaml", f"--run-dir=/runs/{nasty}", f"--set=name={nasty}", "--resume"]
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_found_by_name_and_by_path(project: Path) -> None:
    assert job_file("tiny", str(project)) == "jobs/tiny.yaml"
    assert job_file("jobs/tiny.yaml", str(project)) == "jobs/tiny.yaml"
    assert job_file(str(project / "jobs" / "tiny.yaml"), str(project)) == "jobs/tiny.yaml"


def test_a_job_that_would_not_be_uploaded_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; the jobs in .* are: tiny"):
        job_file("huge", str(project))
    outside = project.parent / "outside.yaml"
    with pytest.raises(ConfigError, match="lies outside"):
        job_file(str(outside), str(project))


def test_a_run_directory_that_would_vanish_is_refused() -> None:
    with pytest.raises(ConfigError, match="is relative"):
        run_command("jobs/tiny.yaml", run_dir="runs/x")


def test_an_address_gets_its_scheme_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    assert dashboard_url("head") == "http://head:8265"
    assert dashboard_url("http://head:9000/") == "http://head:9000"
    assert dashboard_url("https://head/ray") == "https://head/ray"
    with pytest.raises(ConfigError, match="not the address of a Ray dashboard"):
        dashboard_url("ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    with pytest.raises(ConfigError, match="RAY_ADDRESS=http://elsewhere:8265 would override"):
        dashboard_url("http://head:8265")


@pytest.mark.parametrize("address", ["head:dashboard", "http://head:99999", "head:-1", "http://[::1", "http://"])
def test_an_address_that_has_no_such_port_or_no_host_is_one_sentence(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        dashboard_url(address)
    assert str(refused.value) == f"address {address} is not the address of a Ray dashboard: write http://HOST:8265"
