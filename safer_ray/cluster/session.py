"""Reaching a Ray cluster: the one that is there, or one started here that leaves nothing behind."""

from __future__ import annotations

import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from safer_ray.errors import ClusterError, boundary

logger = logging.getLogger(__name__)
TOKEN_MODE = "RAY_AUTH_MODE"
_TOKEN = "RAY_AUTH_TOKEN"
NO_SPARE_WORKERS = {"prestart_worker_first_driver": False}
"""Ray's own setting: it would start a worker per core in advance, which actors with an environment cannot use."""
_PAIR = r"\s+Ray: (\S+)\s+Python: (\S+)"
_VERSIONS = re.compile(rf"Version mismatch: .*{_PAIR}\s+This process .*{_PAIR}")
"""What Ray says when a cluster was started with other versions than this process has."""


@contextmanager
def ray_session(address: str | None, object_store_mib: int) -> Iterator[None]:
    """Connect to the cluster at ``address`` (or RAY_ADDRESS), else start one on this machine.

    A cluster started here uses token authentication, no dashboard, and a temporary directory that goes
    with it. A cluster that was there already is left as it was, and so is the connection of a program that
    has joined its cluster before.

    Raises:
        ClusterError: if the address does not answer or refuses the token.
    """
    if address is None and ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        _connect(address)
        try:
            yield
        finally:
            ray.shutdown()
        return
    with own_token(), tempfile.TemporaryDirectory(prefix="safer_ray-", ignore_cleanup_errors=True) as scratch:
        _start(object_store_mib, scratch)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def own_token() -> Iterator[None]:
    """Give the cluster started here a token of its own; it lives in this process's environment only."""
    mine = {TOKEN_MODE: "token", _TOKEN: secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    _read_authentication_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _read_authentication_again()


def _read_authentication_again() -> None:
    """Make Ray see the environment as it is now: it reads mode and token once, when it is imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _connect(address: str) -> None:
    who = f"cluster {address}: cannot connect; is it running, and is its token here ({TOKEN_MODE}=token)?"
    with boundary(ClusterError, who):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except RuntimeError as exc:
            if sentence := other_version(address, str(exc)):
                raise ClusterError(sentence) from exc
            raise


def other_version(address: str, told: str) -> str:
    """Return what to do where Ray refused because versions differ, "" if that is not what it ``told``."""
    found = _VERSIONS.fullmatch(told.strip())
    if found is None:
        return ""
    ray_there, python_there, ray_here, python_here = found.groups()
    return (
        f"cluster {address}: it runs Ray {ray_there} on Python {python_there}, this process Ray {ray_here} on Python "
        f"{python_here}; install the same versions on both"
    )


def _start(object_store_mib: int, scratch: str) -> None:
    with boundary(ClusterError, "cluster: cannot start Ray here; see the free memory and /dev/shm"):
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, 2),
            object_store_memory=object_store_mib * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=scratch,
            _system_config=NO_SPARE_WORKERS,
        )
    logger.info("started ray cpus=%d object_store_mib=%d", os.cpu_count() or 1, object_store_mib)
