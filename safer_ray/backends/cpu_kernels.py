"""The learner's element-wise kernels for CPUs: compiled once for this machine, called on tensors.

The source lies beside this module. It is compiled with the C++ compiler that DeepSpeed's own operators need, in some
seconds, and kept in the user's cache directory under a hash of source, compiler and processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import subprocess
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import torch

from safer_ray.backends.models import cache_root

logger = logging.getLogger(__name__)
SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = (
    "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math",
    "-fopenmp", "-std=c++17", "-shared", "-fPIC",
)  # fmt: skip
COMPILE_TIMEOUT_S = 300
_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Kernels:
    """The compiled functions; tensors must be contiguous, on a CPU, and fp32 or bf16."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def __call__(self, name: str, dtype: torch.dtype, *arguments: Any) -> None:
        """Call ``name`` for arrays of ``dtype``: a tensor goes as its address, None as no address."""
        passed: list[Any] = []
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                assert argument.is_contiguous(), name
                passed.append(ctypes.c_void_p(argument.data_ptr()))
            elif isinstance(argument, float):
                passed.append(ctypes.c_float(argument))
            else:
                passed.append(argument if argument is None else ctypes.c_int64(argument))
        getattr(self._library, f"{name}_{_SUFFIX[dtype]}")(*passed)


@cache
def kernels() -> Kernels | None:
    """Return the kernels of this machine, compiled if they are not yet; None, with a warning, where that fails."""
    compiler = which(os.environ.get("CXX") or "g++")
    if compiler is None:
        logger.warning("no C++ compiler is on PATH, so the learner computes norms and gates slower; install g++")
        return None
    try:
        return Kernels(_compiled(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        logger.warning("the learner's CPU kernels cannot be compiled, so it computes slower: %s", told.strip()[-500:])
        return None


def kernels_for(*tensors: torch.Tensor) -> Kernels | None:
    """Return the kernels if they can compute on these tensors: all contiguous, on a CPU, and of one known type."""
    dtype = tensors[0].dtype
    if dtype not in _SUFFIX or any(
        t.device.type != "cpu" or t.dtype != dtype or not t.is_contiguous() for t in tensors
    ):
        return None
    return kernels()


def _compiled(compiler: str) -> Path:
    asked = [compiler, "-march=native", "-Q", "--help=target"]  # what native means here; a cache may be shared
    target = subprocess.run(asked, capture_output=True, check=True, timeout=COMPILE_TIMEOUT_S).stdout
    key = hashlib.sha256(b"\0".join((SOURCE.read_bytes(), " ".join(FLAGS).encode(), target))).hexdigest()[:16]
    library = cache_root() / "kernels" / f"{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        aside = library.with_name(f".{key}.{os.getpid()}.so")
        command = [compiler, *FLAGS, "-o", str(aside), str(SOURCE)]
        subprocess.run(command, capture_output=True, check=True, text=True, timeout=COMPILE_TIMEOUT_S)
        aside.replace(library)  # whole or not at all: another rank may be reading
    return library


__all__ = ["Kernels", "kernels", "kernels_for"]
