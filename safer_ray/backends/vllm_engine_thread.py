"""One thread that owns a vLLM engine, so that every caller's requests run in one batch.

An engine is not thread-safe, and on CPU its OpenMP threads belong to the thread that made it. Callers hand in
requests and get futures; between steps the thread admits what came in. An exclusive call (new weights) waits until the
running requests are done, and what came in after it waits until the call is done.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from safer_ray.errors import SaferRayError, SamplerError, boundary

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A finished request and the policy version every token of it was sampled from."""

    output: RequestOutput
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Generate:
    who: str
    ids: Sequence[int]
    params: SamplingParams
    tokens: int
    future: Future[Generated] = field(default_factory=Future)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exclusive:
    call: Callable[[LLMEngine], Any]
    future: Future[Any] = field(default_factory=Future)


class _Stop:
    """The last thing in the inbox."""


class EngineThread:
    """Runs an engine. ``policy_version``, ``refusal`` and ``token_limit`` may be written by exclusive calls only.

    While ``refusal`` says why, no request is admitted. Requests beyond ``token_limit`` tokens in flight wait in order:
    an engine given more than its cache holds throws work away and does it again. One alone is always admitted.
    """

    def __init__(self, build: Callable[[], LLMEngine]) -> None:
        """Build the engine in its thread and wait for it.

        Raises:
            SamplerError: if it could not be built.
        """
        self.policy_version = 0
        self.refusal = ""
        self.token_limit: int | None = None
        self.tokens_in_flight = 0
        self.busy_s = 0.0
        self._inbox: queue.SimpleQueue[_Generate | _Exclusive | _Stop] = queue.SimpleQueue()
        self._backlog: deque[_Generate | _Exclusive | _Stop] = deque()
        self._running: dict[str, tuple[_Generate, int]] = {}
        self._admitted = 0
        self._door = threading.Lock()
        self._end: SaferRayError | None = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, ready), name="vllm-engine", daemon=True)
        self._thread.start()
        ready.result()

    def generate(self, who: str, ids: Sequence[int], params: SamplingParams, *, tokens: int = 0) -> Future[Generated]:
        """Queue one request; ``who`` names it in errors, ``tokens`` is the most it and its siblings may hold."""
        command = _Generate(who=who, ids=ids, params=params, tokens=tokens)
        self._put(command)
        return command.future

    def exclusive(self, call: Callable[[LLMEngine], R]) -> R:
        """Run ``call`` in the engine's thread with no request in flight, and return what it returns."""
        command = _Exclusive(call=call)
        self._put(command)
        result: R = command.future.result()
        return result

    def close(self) -> None:
        """Fail what still runs, shut the engine down and wait for the thread. Safe to call twice."""
        with self._door:
            if self._end is None:
                self._inbox.put(_Stop())
        self._thread.join()

    def _put(self, command: _Generate | _Exclusive) -> None:
        with self._door:
            if self._end is not None:
                raise SamplerError(str(self._end))
            self._inbox.put(command)

    def _run(self, build: Callable[[], LLMEngine], ready: Future[None]) -> None:
        end: SaferRayError = SamplerError("vLLM engine: its thread ended unexpectedly; see the log")
        try:
            with boundary(SamplerError, "vLLM engine"):
                engine = build()
                ready.set_result(None)
                self._serve(engine)
                end = SamplerError("vLLM engine: closed")
                _shut_down(engine)
        except SaferRayError as exc:
            end = exc
        finally:
            self._fail_all(end)
            if not ready.done():
                ready.set_exception(end)

    def _serve(self, engine: LLMEngine) -> None:
        while True:
            if not self._running and not self._backlog:
                self._backlog.append(self._inbox.get())
            while not self._inbox.empty():
                self._backlog.append(self._inbox.get())
            if not self._admit(engine):
                return
            if self._running:
                self._step(engine)

    def _admit(self, engine: LLMEngine) -> bool:
        """Start what may start now; return False if the engine is to stop."""
        while self._backlog:
            command = self._backlog[0]
            if self._running and (isinstance(command, _Exclusive) or self._is_full(command)):
                return True
            self._backlog.popleft()
            if isinstance(command, _Stop):
                return False
            try:
                if isinstance(command, _Exclusive):
                    with boundary(SamplerError, "vLLM engine"):
                        command.future.set_result(command.call(engine))
                else:
                    self._start(engine, command)
            except SaferRayError as exc:
                command.future.set_exception(exc)
        return True

    def _is_full(self, command: _Generate | _Exclusive | _Stop) -> bool:
        limit = self.token_limit
        return limit is not None and isinstance(command, _Generate) and self.tokens_in_flight + command.tokens > limit

    def _start(self, engine: LLMEngine, command: _Generate) -> None:
        from vllm.inputs.engine import tokens_input

        if self.refusal:
            raise SamplerError(self.refusal)
        self._admitted += 1
        key = str(self._admitted)
        # The salt keeps blocks computed under other weights from ever matching.
        prompt = tokens_input(list(command.ids), cache_salt=str(self.policy_version))
        with boundary(SamplerError, f"vLLM engine: {command.who}"):
            engine.add_request(key, prompt, command.params)
        self._running[key] = (command, self.policy_version)
        self.tokens_in_flight += command.tokens

    def _step(self, engine: LLMEngine) -> None:
        begin = time.perf_counter()
        outputs: list[Any] = engine.step()
        for output in outputs:
            if output.finished:
                command, version = self._running.pop(output.request_id)
                self.tokens_in_flight -= command.tokens
                command.future.set_result(Generated(output=output, policy_version=version))
        self.busy_s += time.perf_counter() - begin

    def _fail_all(self, end: SaferRayError) -> None:
        with self._door:
            self._end = end
        while not self._inbox.empty():
            self._backlog.append(self._inbox.get())
        waiting = [command for command in self._backlog if not isinstance(command, _Stop)]
        for command in (*(command for command, _ in self._running.values()), *waiting):
            if not command.future.done():
                command.future.set_exception(end)
        self._running.clear()
        self._backlog.clear()


def _shut_down(engine: LLMEngine) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.engine_core.shutdown()
    # Process groups and model parallel state are global: the next engine in this process needs a clean slate.
    cleanup_dist_env_and_memory()
