"""Where broken runs take place: a small Ray cluster of several raylets, and drivers as processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

MARK = "SAFER_RAY_CHAOS"
"""Environment variable that every process of one stage carries, so that what is left behind can be found."""
ROLES = {"sampler": "ray::SamplerActor", "judge": "ray::GraderActor", "learner": "ray::LearnerActor"}
SHARED_MEMORY = Path("/dev/shm")
_OWN_MARK, _OWN_TOKEN = secrets.token_hex(8), secrets.token_hex(32)
"""One of each for this process: drivers are forked from a server that keeps the environment it began with."""
_PRELOADED = [
    "safer_ray.cli",
    "safer_ray.run",
    "safer_ray.cluster.world",
    "safer_ray.report",
    "safer_ray.plots",
    "pandas",
]
"""What drivers import; pyarrow imports pandas at its first conversion."""


class Stage:
    """A head node for the drivers and one worker node on which samplers and ranks live."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        from safer_ray.cluster.session import NO_SPARE_WORKERS

        self.scratch = Path(tempfile.mkdtemp(prefix="c"))  # short, because it holds unix sockets
        # Where it notes its address: in a folder of its own that is there, not in the one all users share.
        os.environ["RAY_TMPDIR"] = str(self.scratch)
        (self.scratch / "ray").mkdir()
        self._ray: Any = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "include_dashboard": False,
                "object_store_memory": 128 << 20,
                "temp_dir": str(self.scratch),
                "include_log_monitor": False,
                "_system_config": NO_SPARE_WORKERS,
            },
        )
        self.address = str(self._ray.address)
        self._worker: Any = None
        self.grow()

    def grow(self) -> None:
        """Add the worker node, as an autoscaler would."""
        self._worker = self._ray.add_node(num_cpus=4, resources={"worker": 100}, object_store_memory=128 << 20)

    def lose_node(self) -> None:
        """Kill the worker node's raylet with SIGKILL; its workers end with it. ``grow`` brings another."""
        self._worker.kill_raylet()
        with suppress(AssertionError, KeyError, psutil.Error):
            self._ray.remove_node(self._worker, allow_graceful=False)

    def close(self) -> None:
        """End the cluster."""
        self._ray.shutdown()
        shutil.rmtree(self.scratch, ignore_errors=True)


def workers(role: str) -> list[psutil.Process]:
    """Return the living processes of one role that this stage started, oldest first."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time", "status"]):
        words = process.info["cmdline"] or [""]
        if words[0].startswith(ROLES[role]) and process.info["status"] != psutil.STATUS_ZOMBIE and marked(process):
            found.append(process)
    return sorted(found, key=lambda process: process.info["create_time"])


def marked(process: psutil.Process) -> bool:
    """Whether a process was started by this stage: it or one above it carries the mark.

    Ray's workers write their title over their environment, so theirs cannot be read; their raylet's can.
    """
    try:
        line = [process, *process.parents()]
    except psutil.Error:
        line = [process]
    return any(_carries_mark(each) for each in line if each.pid != os.getpid())


def _carries_mark(process: psutil.Process) -> bool:
    try:
        return bool(process.environ().get(MARK) == os.environ[MARK])
    except (psutil.Error, OSError):
        return False


def marked_processes() -> list[psutil.Process]:
    """Return everything this stage started that still runs, this process and its fork server aside."""
    own = {os.getpid(), *(child.pid for child in psutil.Process().children() if "multiprocessing" in _words(child))}
    return [each for each in psutil.process_iter() if each.pid not in own and marked(each) and _lives(each)]


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def shared_memory() -> set[str]:
    """Return the names of the weights that lie in shared memory."""
    return {path.name for path in SHARED_MEMORY.glob("safer_ray-*")}


@contextmanager
def marked_environment() -> Iterator[None]:
    """Mark this process and all it starts, and give the clusters it starts a token."""
    os.environ[MARK] = _OWN_MARK
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_OWN_TOKEN, RAY_USAGE_STATS_ENABLED="0")
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield
    finally:
        for process in marked_processes():  # of a run that was interrupted; the others have been counted by now
            with suppress(psutil.Error):
                process.kill()
        del os.environ[MARK]


def end_orderly() -> None:
    """Make SIGTERM end this process as Ctrl-C does: disks are unmounted, and what it started ends with it."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


class Driver:
    """The command line in a process of its own, forked from a server that has imported everything already."""

    _context = multiprocessing.get_context("forkserver")
    _context.set_forkserver_preload(_PRELOADED)

    def __init__(self, words: list[str], output: Path, act: Callable[[list[str], str], None] | None = None) -> None:
        self.output = output
        self._process = self._context.Process(target=act or command_line, args=(words, str(output)))
        self._process.start()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.join(30)


def last_words(text: str, root: Path) -> str:
    """Return the last line of what a driver wrote, without the folder its run directory lies in.

    Of a traceback also where it was raised: the line alone does not tell.
    """
    lines = text.replace(f"{root.parent}{os.sep}", "").strip().splitlines() or [""]
    places = [line.split(os.sep)[-1].replace('"', "") for line in lines if line.startswith('  File "')]
    return " at ".join([lines[-1][:300], *places[-1:]])


def command_line(words: list[str], output: str) -> None:
    """Be the command line; ``output`` takes what it writes."""
    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["safer-ray", *words]
    from safer_ray.cli import main

    main()


class SmallDisk:
    """A directory on a small tmpfs of its own, which can be filled; a plain directory where mounting is not allowed."""

    def __init__(self, root: Path, mib: int = 48) -> None:
        self.root = root
        root.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(root)]
        self.mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        self._filler = root / "filler"

    def fill(self) -> None:
        """Take every free byte."""
        with suppress(OSError), self._filler.open("wb", buffering=0) as sink:
            while sink.write(bytes(1 << 16)):
                pass

    def free(self) -> None:
        """Give the bytes back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount and remove it."""
        if self.mounted:
            for _ in range(20):
                if subprocess.run(["umount", str(self.root)], capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.5)
        shutil.rmtree(self.root, ignore_errors=True)
