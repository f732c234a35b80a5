"""Submit a run to a cluster through Ray's Jobs API, follow its log, and say how it ended.

The run starts on the head node in a copy of the working directory, as
``python -m safer_ray run jobs/<job>.yaml --run-dir=... --set=...``.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from safer_ray.errors import ClusterError, ConfigError, boundary

LogWriter = Callable[[str], object]
"""Takes a piece of the job's log as it arrives, line ends included."""

DASHBOARD_PORT = 8265
CONNECT_DEADLINE_S = 10.0
POLL_S = 1.0
NOT_UPLOADED = (".git", ".venv", "runs", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A submitted job; ``status`` is Ray's word for it (PENDING, RUNNING, SUCCEEDED)."""

    job_id: str
    status: str
    message: str


def submit_command(entrypoint: str, *, address: str, working_dir: str, follow: LogWriter | None = None) -> JobResult:
    """Start a shell command on the cluster whose dashboard is at ``address``; ``working_dir`` is uploaded.

    With ``follow``, the log goes there and the call returns when the job has succeeded; without, at once.

    Raises:
        ClusterError: no cluster there, a refused token, or a job that failed or was stopped.
    """
    url = dashboard_url(address)
    with _cluster_boundary(f"the cluster at {url}", url):
        _require_listener(url)
        client = JobSubmissionClient(url)
        environment = {"working_dir": working_dir, "excludes": list(NOT_UPLOADED)}
        job_id = client.submit_job(entrypoint=entrypoint, runtime_env=environment)
    with _cluster_boundary(f"job {job_id} at {url} was started but can no longer be watched", url):
        if follow is not None:
            _follow(client, job_id, follow)
        info = client.get_job_info(job_id)
    result = JobResult(job_id=job_id, status=str(info.status.value), message=info.message or "")
    _require_no_failure(result, url)
    return result


def job_file(job: str, working_dir: str) -> str:
    """Return the path of a job file relative to ``working_dir``; ``job`` is a name, as in jobs/NAME.yaml, or a path.

    Raises:
        ConfigError: if it is not there.
    """
    root = Path(working_dir).resolve()
    if not root.is_dir():
        raise ConfigError(f"working directory {working_dir} does not exist: name the folder to upload to the cluster")
    path = (root / (job if job.endswith((".yaml", ".yml")) else f"jobs/{job}.yaml")).resolve()
    if not path.is_relative_to(root):
        raise ConfigError(f"job file {path} lies outside {root}, so it would not be uploaded: move it inside")
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in root.glob("jobs/*.yaml"))) or "none"
        raise ConfigError(f"job file {path} does not exist; the jobs in {root / 'jobs'} are: {known}")
    return path.relative_to(root).as_posix()


def run_command(job_path: str, *, run_dir: str, overrides: Sequence[str] = (), resume: bool = False) -> str:
    """Return the shell command that runs a job file; no value can add a word or a command of its own.

    Raises:
        ConfigError: if ``run_dir`` is relative: it would lie in the job's temporary copy of the project.
    """
    if not (run_dir.startswith("/") or "://" in run_dir):
        raise ConfigError(
            f"run directory {run_dir} is relative, so it would be deleted with the job's copy of the project: "
            "give an absolute path on storage that every node mounts"
        )
    words = ["python", "-m", "safer_ray", "run", f"./{job_path}" if job_path.startswith("-") else job_path]
    words += [f"--run-dir={run_dir}", *(f"--set={override}" for override in overrides)]
    words += ["--resume"] if resume else []
    return shlex.join(words)


def dashboard_url(address: str) -> str:
    """Return the address with a scheme and a port.

    Raises:
        ConfigError: if it is no http address, or if the environment would send the job elsewhere.
    """
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:  # a port that is no number, a bracket left open
        scheme, host, port = "", None, None
    if scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"address {address} is not the address of a Ray dashboard: write http://HOST:{DASHBOARD_PORT}"
        )
    if port is None and scheme == "http":
        url = f"{url}:{DASHBOARD_PORT}"
    for variable in ADDRESS_VARIABLES:
        # Ray lets these win over the address it is given, silently.
        other = os.environ.get(variable)
        if other and other.rstrip("/") not in (url, address):
            raise ConfigError(f"{variable}={other} would override the address {url}: unset it, or make the two agree")
        if other:
            break
    return url


def _require_listener(url: str) -> None:
    parts = urlsplit(url)
    port = parts.port or 443
    try:
        # Ray's client sets no time limit on its requests, so a host that swallows packets would hang it.
        socket.create_connection((str(parts.hostname), port), timeout=CONNECT_DEADLINE_S).close()
    except OSError as exc:
        raise ClusterError(
            f"no Ray cluster answers at {url} ({exc}): start one with 'ray start --head' or 'ray up cluster.yaml', "
            "and forward its port with 'ray dashboard cluster.yaml' if the head is remote"
        ) from exc


@contextmanager
def _cluster_boundary(who: str, url: str) -> Iterator[None]:
    with boundary(ClusterError, who):
        try:
            yield
        except AuthenticationError as exc:
            raise ClusterError(
                f"the cluster at {url} refused the authentication token: set RAY_AUTH_MODE=token and put the cluster's "
                "token into RAY_AUTH_TOKEN, or into the file that RAY_AUTH_TOKEN_PATH names"
            ) from exc


def _follow(client: JobSubmissionClient, job_id: str, write: LogWriter) -> None:
    """Write the job's log as it grows until the job has ended."""
    log = _LogCopy(client, job_id, write)
    last_try = False
    while True:
        whole = log.catch_up()
        ended = client.get_job_status(job_id).is_terminal()
        if ended and (whole or last_try):
            return
        last_try = ended
        time.sleep(POLL_S)


class _LogCopy:
    """Copies a job's log piece by piece; Ray sends it from the start each time, so it counts what it has written."""

    def __init__(self, client: JobSubmissionClient, job_id: str, write: LogWriter) -> None:
        self._client = client
        self._job_id = job_id
        self._write = write
        self._written = 0

    def catch_up(self) -> bool:
        """Copy until the job ends; False if the connection broke before that."""
        try:
            asyncio.run(self._copy())
        except (RuntimeError, aiohttp.ClientError):
            return False
        return True

    async def _copy(self) -> None:
        seen = 0
        async for piece in self._client.tail_job_logs(self._job_id):
            new = piece[max(self._written - seen, 0) :]
            seen += len(piece)
            if new:
                self._write(new)
                self._written += len(new)


def _require_no_failure(result: JobResult, url: str) -> None:
    if result.status == JobStatus.FAILED.value:
        reason = result.message.partition(", last available logs")[0].rstrip(". ") or "no reason given"
        raise ClusterError(
            f"job {result.job_id} failed: {reason}; read its log with 'ray job logs {result.job_id} --address {url}'"
        )
    if result.status == JobStatus.STOPPED.value:
        raise ClusterError(
            f"job {result.job_id} was stopped before it had finished: submit it again with the same "
            "run directory and --resume"
        )
