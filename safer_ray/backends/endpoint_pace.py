"""How fast an endpoint is asked, how its outages are waited for, and what its answers cost."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

logger = logging.getLogger(__name__)


class Pace:
    """At most so many requests a minute, evenly spaced; 0 is no limit. Safe to share between threads."""

    def __init__(self, requests_per_minute: int) -> None:
        self._gap_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next_s = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may go out."""
        if not self._gap_s:
            return
        with self._lock:
            now_s = time.monotonic()
            mine_s = max(now_s, self._next_s)
            self._next_s = mine_s + self._gap_s
        time.sleep(mine_s - now_s)


class Outage:
    """An endpoint that is down, seen from all threads at once: they wait, and go on when it answers one of them.

    An outage lasts ``longest_s`` at most; after that every question is given up until one gets an answer.
    """

    def __init__(self, longest_s: float, probe_gap_s: float) -> None:
        self._longest_s = longest_s
        self._probe_gap_s = probe_gap_s
        self._began_s: float | None = None
        self._probe_at_s = 0.0
        self._changed = threading.Condition()

    def wait(self) -> None:
        """Return at once while the endpoint is up; else when it is up again, or it is this thread's turn to try."""
        with self._changed:
            while self._began_s is not None:
                now_s = time.monotonic()
                if now_s >= self._probe_at_s or now_s - self._began_s >= self._longest_s:
                    self._probe_at_s = now_s + self._probe_gap_s
                    return
                self._changed.wait(self._probe_at_s - now_s)

    def may_wait(self, name: str) -> bool:
        """Note that a question found the endpoint down; return whether it should be asked again later."""
        with self._changed:
            if not self._longest_s:
                return False
            now_s = time.monotonic()
            if self._began_s is None:
                self._began_s, self._probe_at_s = now_s, now_s + self._probe_gap_s
                logger.warning("endpoint down model=%s; questions wait for up to %.0f s", name, self._longest_s)
            return now_s - self._began_s < self._longest_s

    def over(self) -> None:
        """Note that the endpoint answered; whoever waits goes on."""
        with self._changed:
            if self._began_s is not None:
                logger.warning("endpoint up again after_s=%.1f", time.monotonic() - self._began_s)
                self._began_s = None
                self._changed.notify_all()


def read_usage(answer: Any, choice: Any) -> tuple[int, int, tuple[tuple[tuple[str, float], ...], ...]]:
    """Return tokens in, tokens out, and per generated token the alternatives with their log-probs in nats.

    Chat answers list them as objects, completions as dictionaries; an endpoint that sends none gives ().
    """
    usage = getattr(answer, "usage", None)
    tokens_in, tokens_out = (int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens"))
    logprobs = getattr(choice, "logprobs", None)
    chat, plain = getattr(logprobs, "content", None), getattr(logprobs, "top_logprobs", None)
    positions: tuple[tuple[tuple[str, float], ...], ...] = ()
    if chat:
        positions = tuple(tuple((each.token, float(each.logprob)) for each in token.top_logprobs) for token in chat)
    elif plain:
        positions = tuple(tuple((text, float(value)) for text, value in (token or {}).items()) for token in plain)
    return tokens_in, tokens_out, positions
