"""The thread around an engine: who waits for whom, and what callers see when the engine fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from safer_ray.backends.vllm_engine_thread import EngineThread
from safer_ray.errors import SamplerError


class ToyEngine:
    """Finishes one request a step, once ``go`` is set; fails at the first step if told so."""

    def __init__(self, *, broken: bool = False) -> None:
        self.go = threading.Event()
        self.broken = broken
        self.requests: list[str] = []
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def add_request(self, key: str, prompt: Any, params: Any) -> None:
        if params == "bad":
            raise ValueError("these parameters cannot be served")
        self.requests.append(key)

    def step(self) -> list[SimpleNamespace]:
        if self.broken:
            raise RuntimeError("out of memory")
        if not self.go.wait(0.01):
            return []
        return [SimpleNamespace(request_id=self.requests.pop(0), finished=True)]


@pytest.fixture
def start() -> Iterator[Callable[[ToyEngine], EngineThread]]:
    threads: list[EngineThread] = []

    def begin(engine: Any) -> EngineThread:
        threads.append(EngineThread(lambda: engine))
        return threads[-1]

    yield begin
    for thread in threads:
        thread.close()


def test_an_engine_that_does_not_start_says_why() -> None:
    def build() -> Any:
        raise ValueError("no such model")

    with pytest.raises(SamplerError, match="no such model"):
        EngineThread(build)


def test_an_exclusive_call_waits_for_what_runs_and_holds_back_what_comes_after(
    start: Callable[[ToyEngine], EngineThread],
) -> None:
    engine = ToyEngine()
    thread = start(engine)
    before = [thread.generate(str(i), [1], None) for i in range(3)]  # type: ignore[arg-type]
    in_flight: list[int] = []

    def update(engine: Any) -> None:
        in_flight.append(len(engine.requests))
        thread.policy_version = 7

    updating = threading.Thread(target=thread.exclusive, args=(update,))
    updating.start()
    engine.go.set()
    updating.join()
    later = thread.generate("later", [1], None)  # type: ignore[arg-type]
    assert in_flight == [0]
    assert [future.result().policy_version for future in before] == [0, 0, 0]
    assert later.result().policy_version == 7


def test_a_request_that_cannot_be_served_fails_alone(start: Callable[[ToyEngine], EngineThread]) -> None:
    engine = ToyEngine()
    engine.go.set()
    thread = start(engine)
    bad, good = thread.generate("request-7", [1], "bad"), thread.generate("fine", [1], None)  # type: ignore[arg-type]
    with pytest.raises(SamplerError, match="request-7"):
        bad.result()
    assert good.result().output.finished


def test_a_failing_engine_fails_what_runs_and_what_comes_after(start: Callable[[ToyEngine], EngineThread]) -> None:
    thread = start(ToyEngine(broken=True))
    with pytest.raises(SamplerError, match="out of memory"):
        thread.generate("a", [1], None).result()  # type: ignore[arg-type]
    with pytest.raises(SamplerError, match="out of memory"):
        thread.generate("b", [1], None).result()  # type: ignore[arg-type]
    with pytest.raises(SamplerError, match="out of memory"):
        thread.exclusive(lambda engine: None)


def test_closing_fails_what_still_runs(start: Callable[[ToyEngine], EngineThread]) -> None:
    thread = start(ToyEngine())
    running = thread.generate("a", [1], None)  # type: ignore[arg-type]
    thread.close()
    with pytest.raises(SamplerError, match="closed"):
        running.result()


def test_requests_beyond_the_token_limit_wait_in_order(start: Callable[[ToyEngine], EngineThread]) -> None:
    engine = ToyEngine()
    thread = start(engine)
    most = 0

    def step() -> list[SimpleNamespace]:
        nonlocal most
        most = max(most, thread.tokens_in_flight)
        return ToyEngine.step(engine)

    engine.step = step  # type: ignore[method-assign]
    thread.exclusive(lambda _: setattr(thread, "token_limit", 100))
    sizes = (40, 50, 30, 250, 10)  # the fourth is over the limit by itself: it runs alone
    futures = [thread.generate(str(i), [1], None, tokens=size) for i, size in enumerate(sizes)]  # type: ignore[arg-type]
    engine.go.set()
    assert [future.result().output.request_id for future in futures] == ["1", "2", "3", "4", "5"]
    assert most == 250
    assert thread.exclusive(lambda _: thread.tokens_in_flight) == 0


def test_within_the_token_limit_requests_run_together(start: Callable[[ToyEngine], EngineThread]) -> None:
    engine = ToyEngine()
    thread = start(engine)
    thread.exclusive(lambda _: setattr(thread, "token_limit", 100))
    futures = [thread.generate(str(i), [1], None, tokens=40) for i in range(3)]  # type: ignore[arg-type]
    deadline = time.monotonic() + 10
    while thread.tokens_in_flight < 80 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert thread.tokens_in_flight == 80
    assert engine.requests == ["1", "2"]
    engine.go.set()
    assert all(future.result().output.finished for future in futures)
