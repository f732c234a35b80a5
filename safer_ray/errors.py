"""One flat error class per boundary, each built from one sentence.

The class says which boundary was crossed; the sentence says what happened, where, and what to do.
Every class takes a single string because an exception with any other constructor does not survive
the trip between Ray actors. ``boundary()`` is the only place that catches ``Exception``: it turns a
foreign error into ours and keeps the original as the cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 600
"""Characters of a foreign error's text that are passed on; the whole of it stays in the cause."""


class SaferRayError(Exception):
    """Anything safer_ray raises on purpose; its text is meant for a person."""


class ConfigError(SaferRayError):
    """A run config or a command line that cannot be run as written."""


class RulePackError(SaferRayError):
    """A rule pack that does not load."""


class DataError(SaferRayError):
    """Prompts, shards or tables that cannot be read."""


class TraceError(SaferRayError):
    """Text that is not an Ex-Ante trace."""


class ModelError(SaferRayError):
    """A model, tokenizer or checkpoint that cannot be found, read or used."""


class SamplerError(SaferRayError):
    """A rollout engine that failed."""


class JudgeError(SaferRayError):
    """A judge that failed as a whole; a single step it could not score is only unscored."""


class TeacherError(SaferRayError):
    """A teacher that failed as a whole; a single trace it could not write is only rejected."""


class LearnerError(SaferRayError):
    """A learner rank or group that failed; training stops."""


class WeightsError(SaferRayError):
    """Weights that could not be written, moved, loaded or confirmed."""


class ClusterError(SaferRayError):
    """Ray refused: no resources, no cluster, a dead actor."""


class JournalError(SaferRayError):
    """A run directory or journal that cannot be read or written."""


@contextmanager
def boundary(error: type[SaferRayError], who: str) -> Iterator[None]:
    """Attribute whatever fails inside to ``who``, as ``error``.

    Our own errors pass unchanged: the boundary nearest to the fault has named it already.
    """
    try:
        yield
    except SaferRayError:
        raise
    except Exception as exc:
        told = " ".join(str(exc).split())  # one sentence on one line, whatever the library wrote
        raise error(f"{who}: {type(exc).__name__}: {told[:_LONGEST]}") from exc
