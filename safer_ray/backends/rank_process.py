"""The process of one learner rank: its accelerator, its process group, its memory."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from safer_ray.backends.host_memory import keep_freed_memory
from safer_ray.errors import LearnerError

if TYPE_CHECKING:
    import torch


def join_group(rank: int, world_size: int, master: str, *, threads: int) -> torch.device:
    """Set up the process for its accelerator and enter the process group."""
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    host, _, port = master.rpartition(":")
    # Each rank is a process with one visible device, so its local rank is always 0.
    places = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": 0, "MASTER_ADDR": host, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    # DeepSpeed looks for ninja on PATH; it lies beside this interpreter, which need not be activated.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    import deepspeed

    # DeepSpeed 0.19 calls collectives by names that torch 2.13 warns about, once per parameter.
    warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning, module="torch.distributed")
    if world_size == 1:
        # The shared-memory operator speeds up collectives between CPU ranks; compiling it takes 20 s and a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
    except torch.distributed.DistError as exc:
        told = str(exc).splitlines()[0]
        raise LearnerError(
            f"learner rank {rank}: cannot meet the other ranks at {master} ({told}); if another program has taken that "
            "port, resume: each start takes a free one"
        ) from exc
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")
