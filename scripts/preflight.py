"""Refuse a machine that cannot run safer_ray, one sentence per reason, before anything is downloaded.

Plain Python 3.6 and no imports beyond the standard library: a Python that is too old has to be told so
in a sentence and not in a SyntaxError.
"""

import argparse
import os
import platform
import shutil
import sys
import sysconfig
from typing import NamedTuple

OLDEST_PYTHON = (3, 11)
FIRST_UNSUPPORTED_PYTHON = (3, 15)
FRESH_INSTALL_GB = 6.0
CHANGED_LOCK_GB = 2.0


class Facts(NamedTuple):
    """What was seen of this machine. ``cpu_flags`` is "" where the processor does not list any."""

    system: str
    machine: str
    python: tuple
    python_path: str
    cpu_flags: str
    free_gb: float
    needed_gb: float
    folder: str
    compiler: str
    has_venv: bool
    has_headers: bool


def _python_problem(facts):
    version = "{}.{}".format(*facts.python[:2])
    if facts.python[:2] < OLDEST_PYTHON:
        return (
            f"{facts.python_path} is Python {version}, but safer_ray needs Python 3.11 or newer: "
            "install one and name it, for example 'make demo PYTHON=python3.11'."
        )
    if facts.python[:2] >= FIRST_UNSUPPORTED_PYTHON:
        return (
            f"{facts.python_path} is Python {version}, and vLLM has no build for it yet: "
            "name an older one, for example 'make demo PYTHON=python3.12'."
        )
    return ""


def _system_problem(facts):
    if facts.system != "linux":
        return f"this system is {facts.system}, but vLLM and DeepSpeed run here on Linux only: use a Linux machine."
    if facts.machine not in ("x86_64", "aarch64"):
        return f"this processor is {facts.machine}, but vLLM's CPU build exists for x86_64 and aarch64 only."
    return ""


def _avx2_problem(facts):
    if facts.machine == "x86_64" and "avx2" not in facts.cpu_flags.split():
        return "this CPU has no AVX2 instructions, which vLLM's CPU build needs: use a machine made after about 2015."
    return ""


def _disk_problem(facts):
    if facts.free_gb < facts.needed_gb:
        return (
            f"{facts.folder} has {facts.free_gb:.1f} GB of free disk, but the installation needs "
            f"{facts.needed_gb:.0f} GB: free some, or move the project to a larger disk."
        )
    return ""


def _compiler_problem(facts):
    if not facts.compiler:
        return (
            "g++ was not found, and DeepSpeed compiles a small extension when it first runs: "
            "install it, for example 'apt-get install g++'."
        )
    return ""


def _python_parts_problem(facts):
    version = "{}.{}".format(*facts.python[:2])
    if not facts.has_venv:
        return (
            f"Python {version} comes without its venv module here: "
            f"install it, for example 'apt-get install python{version}-venv'."
        )
    if not facts.has_headers:
        return (
            f"Python {version} comes without its C headers (Python.h) here, which DeepSpeed's extension needs: "
            f"install them, for example 'apt-get install python{version}-dev'."
        )
    return ""


CHECKS = (_python_problem, _system_problem, _avx2_problem, _disk_problem, _compiler_problem, _python_parts_problem)


def problems(facts):
    """Return one sentence per reason why safer_ray cannot be installed; an empty list if it can."""
    return [sentence for sentence in (check(facts) for check in CHECKS) if sentence]


def cpu_flags(cpuinfo):
    """Return the flags of the first processor in the text of /proc/cpuinfo, "" if it lists none."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return value.strip()
    return ""


def _read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _has_venv():
    try:
        import ensurepip
        import venv
    except ImportError:
        return False
    return bool(ensurepip and venv)


def gather(folder, fresh):
    """Look at this machine; ``fresh`` says that nothing has been installed into ``folder`` before."""
    return Facts(
        system=sys.platform,
        machine=platform.machine(),
        python=tuple(sys.version_info[:3]),
        python_path=sys.executable,
        cpu_flags=cpu_flags(_read("/proc/cpuinfo")),
        free_gb=shutil.disk_usage(folder).free / 1e9,
        needed_gb=FRESH_INSTALL_GB if fresh else CHANGED_LOCK_GB,
        folder=os.path.abspath(folder),
        compiler=os.environ.get("CXX") or shutil.which("g++") or "",
        has_venv=_has_venv(),
        has_headers=os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")),
    )


def main(argv):
    parser = argparse.ArgumentParser(description="Say what keeps this machine from running safer_ray.")
    parser.add_argument("folder", help="the folder that will hold .venv")
    parser.add_argument("--again", action="store_true", help="an installation is there and only changes")
    options = parser.parse_args(argv)
    found = problems(gather(options.folder, fresh=not options.again))
    for sentence in found:
        sys.stderr.write("safer-ray: " + sentence + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
