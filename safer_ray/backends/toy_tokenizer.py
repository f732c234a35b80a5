"""A tokenizer of 512 ids that needs no model: the fakes' stand-in for ``models.ChatTokenizer``."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from safer_ray.core.trace import Trace, escape_tags, segments
from safer_ray.records import STEP_KINDS, Message, Step

VOCAB_SIZE = 512
_ROLES = {"system": 256, "user": 257, "assistant": 258}
_END_OF_TURN = 259
_FIRST_MERGE = 260
_TAGS = "<think> </think> <assessment> </assessment> <verification> </verification> <calibration> </calibration>"
_WORDS = (
    "the a an is it this that of to and or for in on with by be can could will not no yes user request asks about "
    "intent harmful harm legitimate ordinary reading someone plain hidden rule rules applies violated near none "
    "checked nothing here answer fully refuse because offer safe alternative instead sorry but help sure step steps "
    "first then last look clear basics take once more again policy question reason hurt real follows case way would"
)
_MERGES = tuple(sorted({*_TAGS.split(), *(f" {word}" for word in _WORDS.split())}, key=lambda m: (-len(m), m)))
_MERGE = re.compile("|".join(f"{re.escape(m)}(?![a-z])" for m in _MERGES))
_ID_OF = {merge: _FIRST_MERGE + i for i, merge in enumerate(_MERGES)}
_BYTES_OF = {i: bytes([i]) for i in range(256)} | {i: merge.encode() for merge, i in _ID_OF.items()}


class ToyTokenizer:
    """UTF-8 bytes (ids 0-255), turn markers (256-259), and common words and trace tags as one id each.

    No text encodes to a turn marker, so nothing a user types can end a turn.
    """

    @property
    def end_of_turn_id(self) -> int:
        """The id that ends an assistant turn; it decodes to nothing."""
        return _END_OF_TURN

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a turn."""
        return frozenset({_END_OF_TURN})

    def segment_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of ``text`` alone; ``decode_pieces`` undoes it for any text without lone surrogates."""
        ids: list[int] = []
        position = 0
        for match in _MERGE.finditer(text):
            ids.extend(text[position : match.start()].encode("utf-8", "replace"))
            ids.append(_ID_OF[match[0]])
            position = match.end()
        ids.extend(text[position:].encode("utf-8", "replace"))
        return tuple(ids)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the conversation as ids, up to and including the opening of the assistant's turn.

        Trace tags are escaped in all but system messages.
        """
        ids: list[int] = []
        for message in messages:
            text = message.content if message.role == "system" else escape_tags(message.content)
            ids += [_ROLES[message.role], *self.segment_ids(text), _END_OF_TURN]
        return (*ids, _ROLES["assistant"])

    def decode_pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text each token adds, one piece per id; a character of several bytes comes with its last byte."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = [decoder.decode(_BYTES_OF.get(i, b"")) for i in ids]
        if pieces:
            pieces[-1] += decoder.decode(b"", final=True)
        return pieces

    def encode_trace(self, trace: Trace) -> tuple[tuple[int, ...], tuple[Step, ...]]:
        """Return the completion ids of ``trace``, segment by segment and closed by end-of-turn, with their steps."""
        ids: list[int] = []
        steps = []
        for kind, text in zip(STEP_KINDS, segments(trace), strict=True):
            start = len(ids)
            ids.extend(self.segment_ids(text))
            if kind == STEP_KINDS[-1]:
                ids.append(_END_OF_TURN)
            steps.append(Step(kind=kind, start=start, stop=len(ids), text=text))
        return tuple(ids), tuple(steps)
