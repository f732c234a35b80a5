"""A chat endpoint that speaks the OpenAI form: many questions at once, each tried until its deadline.

Replies are kept in a JSONL file by the hash of what was asked, so a run that was interrupted pays for no
answer twice. The key is read from the environment when the client is built and is written nowhere.
An endpoint that is down stops all questions until it answers again, or ``outage_s`` have passed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safer_ray.backends.endpoint_pace import Outage, Pace, read_usage
from safer_ray.errors import ConfigError, DataError, boundary
from safer_ray.records import Message

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

_REFUSED_STATUS = {401, 403, 404}
"""The endpoint will never answer: a wrong key, model or URL. Every other request would fail, too."""
_RETRIED_STATUS = {408, 409, 425, 429}
"""Worth another try, as is everything from 500 on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """Builds an :class:`Endpoint`.

    ``key_env`` names the environment variable with the key; "" is for endpoints that want none. A try waits
    between 0 and ``retry_base_s`` x 2^tries (at most ``retry_cap_s``) after the last one, or as long as the
    endpoint asks; all tries of one question end within ``deadline_s``. ``cache_path`` "" keeps no replies.
    ``requests_per_minute`` 0 is no limit. ``outage_s`` 0 gives a question up when its tries are spent; above 0 an
    endpoint that cannot be reached stops all questions for so long before they are given up.
    """

    base_url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    deadline_s: float = 120.0
    max_tries: int = 5
    retry_base_s: float = 1.0
    retry_cap_s: float = 20.0
    temperature: float = 0.7
    max_tokens: int = 512
    cache_path: str = ""
    requests_per_minute: int = 0
    outage_s: float = 0.0

    def build(self) -> Endpoint:
        """Return the client.

        Raises:
            ConfigError: if the key is not in the environment.
            DataError: if the cache cannot be read.
        """
        return Endpoint(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One conversation to continue. ``seed`` tells apart two draws of the same conversation.

    ``raw`` is text to continue instead of a conversation, for models with a format of their own. ``schema`` is the
    JSON schema the answer must keep to, "" for none. ``logprobs`` asks for so many alternatives per token.
    """

    question_id: str
    messages: tuple[Message, ...] = ()
    seed: int = 0
    raw: str = ""
    schema: str = ""
    logprobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back: ``text``, or None and the ``error`` of the last try. ``tries`` is 0 for a kept reply.

    ``positions`` holds, per generated token, the alternatives with their log-probs in nats, if they were asked for.
    ``unreachable``: nobody answered at all; it says nothing about the question.
    """

    question_id: str
    text: str | None
    error: str = ""
    tries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    truncated: bool = False
    positions: tuple[tuple[tuple[str, float], ...], ...] = ()
    unreachable: bool = False


class _TryAgainError(Exception):
    """A try that failed in a way that may pass; ``wait_s`` is what the endpoint asked for, or None.

    ``down``: the endpoint itself is out, not only this question.
    """

    def __init__(self, reason: str, wait_s: float | None = None, *, down: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.down = down


class Endpoint:
    """A client with bounded concurrency; safe to call from several threads."""

    def __init__(self, spec: EndpointSpec) -> None:
        import openai

        key = os.environ.get(spec.key_env, "") if spec.key_env else "none"
        if not key:
            raise ConfigError(f"endpoint {spec.base_url}: ${spec.key_env} is not set; export the key under that name")
        self._spec = spec
        self._client = openai.OpenAI(base_url=spec.base_url, api_key=key, max_retries=0)
        self._kept = _ReplyFile(Path(spec.cache_path)) if spec.cache_path else None
        self._slots = threading.BoundedSemaphore(spec.concurrency)
        self._pace = Pace(spec.requests_per_minute)
        self._outage = Outage(spec.outage_s, spec.retry_cap_s)

    @property
    def name(self) -> str:
        """The model behind the endpoint, for lineage."""
        return self._spec.model

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """Return one reply per question, in order.

        Raises:
            ConfigError: if the endpoint refuses the key, the model or the address.
        """
        pool = ThreadPoolExecutor(max_workers=self._spec.concurrency, thread_name_prefix="endpoint")
        try:
            return list(pool.map(self._answer, questions))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Close the connections. Safe to call twice."""
        self._client.close()

    def _answer(self, question: Question) -> Reply:
        key = self._key(question)
        kept = self._kept.get(key) if self._kept else None
        if kept is not None:
            return Reply(question_id=question.question_id, text=kept)
        with self._slots:
            reply = self._try_through_outages(question, random.Random(key))
        if self._kept and reply.text is not None:
            self._kept.put(key, reply.text)
        return reply

    def _try_through_outages(self, question: Question, rng: random.Random) -> Reply:
        """Ask until there is an answer or a refusal; an endpoint that is down is waited for, ``outage_s`` at most.

        So is one that answers everything but this question.
        """
        tries, end_s = 0, math.inf
        while True:
            self._outage.wait()
            reply = self._try_until_deadline(question, rng)
            tries += reply.tries
            if not reply.unreachable:
                self._outage.over()
                break
            end_s = min(end_s, time.monotonic() + self._spec.outage_s)
            if not self._outage.may_wait(self.name) or time.monotonic() >= end_s:
                break
        return replace(reply, tries=tries)

    def _try_until_deadline(self, question: Question, rng: random.Random) -> Reply:
        spec = self._spec
        self._pace.wait()  # our own pace is no fault of the endpoint's, so its deadline begins after it
        end_s, error, down = time.monotonic() + spec.deadline_s, "", False
        for tries in range(1, spec.max_tries + 1):
            try:
                reply = self._try_once(question, timeout_s=max(0.001, end_s - time.monotonic()))
                return replace(reply, tries=tries)
            except _TryAgainError as exc:
                error, down = str(exc), exc.down
                jittered_s = rng.uniform(0, min(spec.retry_cap_s, spec.retry_base_s * 2 ** (tries - 1)))
                wait_s = jittered_s if exc.wait_s is None else exc.wait_s + jittered_s
            except ValueError as exc:
                return Reply(question_id=question.question_id, text=None, error=str(exc), tries=tries)
            if tries == spec.max_tries or time.monotonic() + wait_s >= end_s:
                break
            time.sleep(wait_s)
            self._pace.wait()
        logger.warning("endpoint gave up question=%s tries=%d error=%s", question.question_id, tries, error)
        said = f"{error}, {tries} tries"
        return Reply(question_id=question.question_id, text=None, error=said, tries=tries, unreachable=down)

    def _try_once(self, question: Question, *, timeout_s: float) -> Reply:
        """Return one answer.

        Raises:
            ConfigError: if no request can succeed.
            ValueError: if this request cannot succeed.
        """
        import openai

        try:
            answer = self._create(question, timeout_s)
        except openai.APIStatusError as exc:
            raise self._judged_status(exc) from exc
        except openai.APIConnectionError as exc:
            raise _TryAgainError(f"no connection ({type(exc).__name__})", down=True) from exc
        except (openai.OpenAIError, ValueError) as exc:
            raise _TryAgainError(f"an unreadable answer ({type(exc).__name__})") from exc
        choices = getattr(answer, "choices", None)
        choice: Any = choices[0] if choices else None
        text = (
            getattr(choice, "text", None)
            if question.raw
            else getattr(getattr(choice, "message", None), "content", None)
        )
        if not isinstance(text, str) or not text.strip():
            raise _TryAgainError("an answer without text")
        tokens_in, tokens_out, positions = read_usage(answer, choice)
        return Reply(
            question_id=question.question_id,
            text=text,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            truncated=choice.finish_reason == "length",
            positions=positions,
        )

    def _create(self, question: Question, timeout_s: float) -> Any:
        spec, more = self._spec, dict[str, Any]()
        if question.schema:
            form = {"name": "verdict", "strict": True, "schema": json.loads(question.schema)}
            more["response_format"] = {"type": "json_schema", "json_schema": form}
        common = {
            "model": spec.model,
            "temperature": spec.temperature,
            "max_tokens": spec.max_tokens,
            "seed": question.seed,
            "timeout": timeout_s,
        }
        if question.raw:
            more |= {"logprobs": question.logprobs} if question.logprobs else {}
            return self._client.completions.create(prompt=question.raw, **common, **more)  # type: ignore[call-overload]
        more |= {"logprobs": True, "top_logprobs": question.logprobs} if question.logprobs else {}
        turns = [{"role": turn.role, "content": turn.content} for turn in question.messages]
        return self._client.chat.completions.create(messages=turns, **common, **more)  # type: ignore[call-overload]

    def _judged_status(self, exc: openai.APIStatusError) -> Exception:
        status = exc.status_code
        if status in _REFUSED_STATUS:
            spec = self._spec
            return ConfigError(
                f"endpoint {spec.base_url}: status {status} for model {spec.model}; "
                f"check the URL, the model name and the key in ${spec.key_env}"
            )
        if status in _RETRIED_STATUS or status >= 500:
            wish_s = _retry_after_s(exc.response.headers.get("retry-after"))
            return _TryAgainError(f"status {status}", wish_s, down=status >= 500)
        return ValueError(f"status {status}")

    def _key(self, question: Question) -> str:
        spec = self._spec
        asked = [
            spec.base_url, spec.model, spec.temperature, spec.max_tokens, question.seed,
            [asdict(turn) for turn in question.messages],
        ]  # fmt: skip
        if question.raw or question.schema or question.logprobs:
            asked.append([question.raw, question.schema, question.logprobs])
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _retry_after_s(header: str | None) -> float | None:
    """Return the seconds an endpoint asks to wait; the date form of the header is taken as no wish."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


class _ReplyFile:
    """Replies by request hash, one JSON object a line, appended as they come.

    A last line cut short by an interruption is dropped; anything else unreadable is refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._replies: dict[str, str] = {}
        with boundary(DataError, f"{path}: cannot be used to keep replies"):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
        whole, _, torn = content.rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._replies[row["key"]] = row["text"]
            except (ValueError, KeyError, TypeError) as exc:
                raise DataError(f"{path}:{number}: not a kept reply ({exc}); delete the line or the file") from exc
        if torn:
            with path.open("r+b") as stream:
                stream.truncate(len(content) - len(torn))

    def get(self, key: str) -> str | None:
        """Return the kept reply, or None."""
        return self._replies.get(key)

    def put(self, key: str, text: str) -> None:
        """Keep a reply; it is on disk when this returns."""
        line = json.dumps({"key": key, "text": text}) + "\n"
        with self._lock:
            self._replies[key] = text
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
