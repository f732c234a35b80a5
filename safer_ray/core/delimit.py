"""Text of others as data in a judge's prompt: between nonce lines, every line of it quoted, no markup left alive.

Three walls, each of which would do alone: the text cannot know the nonce of its own markers (it is a hash over
the text and a secret), no line of it can start a line of the prompt (each gets a quote mark), and nothing in it
can be read as a control token or a role by a tokenizer or a chat template.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

QUOTE = "| "
"""Stands before every line of judged text."""
_LINE_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_OPENER = re.compile(r"<(?=\S)")
_BRACKETED = re.compile(r"\[(\s*/?\s*[A-Za-z_]{2,16}(?:[ _-][A-Za-z_]{2,16}){0,3}\s*)\](?!\()")
_ROLE = re.compile(
    r"(?im)^((?:[^\S\n]|[>#*_`-])*(?:the\s+|as\s+the\s+)?(?:system|developer|user|human(?:\s+user)?|assistant|ai(?:\s+assistant)?|agent|chatbot"
    r"|model|judge|evaluator|grader|tool|ipython|instructions?|response|answers?|verdict|output|label|score)"
    r"(?:\s+(?:question|response|prompt|message|note|override))?[\s*_`]*):"
)


def neutralise(text: str) -> str:
    """Return ``text`` with nothing in it that a tokenizer or a chat template could take for structure.

    Angle brackets that open something become U+2039, bracketed words (``[INST]``, ``[END]``) get round brackets,
    a role at the start of a line loses its colon, control and invisible characters go, every line break is ``\\n``.
    """
    lines = _LINE_ENDS.sub("\n", text)
    visible = "".join(c for c in lines if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    plain = _BRACKETED.sub(r"(\1)", _OPENER.sub("\u2039", visible))
    return _ROLE.sub(r"\1 -", plain)


def quoted(text: str) -> str:
    """Return the neutralised text with the quote mark before every line, so that none of it begins a line."""
    return "\n".join(QUOTE + line for line in neutralise(text).split("\n"))


def nonce_for(*texts: str, secret: str) -> str:
    """Return 24 hex digits that stand in none of ``texts`` and that their author cannot foresee.

    The same texts and secret give the same nonce, so a judged text is judged the same way again.
    """
    joined = "\x00".join((secret, *texts))
    for turn in range(1000):
        nonce = hashlib.sha256(f"{turn}/{joined}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
        if not any(nonce in text for text in texts):
            return nonce
    raise ValueError("a text that holds a thousand of its own hashes cannot be delimited")


def begin_line(name: str, nonce: str) -> str:
    """Return the line before the data called ``name``."""
    return f"[{nonce}] {name} begins"


def end_line(name: str, nonce: str) -> str:
    """Return the line after the data called ``name``."""
    return f"[{nonce}] {name} ends"


def delimited(name: str, text: str, nonce: str) -> str:
    """Return the data block: the begin line, the quoted text, the end line.

    Raises:
        ValueError: if the text holds the nonce: make the nonce from the text.
    """
    body = quoted(text)
    if nonce in body:
        raise ValueError("the nonce stands in the text it delimits")
    return f"{begin_line(name, nonce)}\n{body}\n{end_line(name, nonce)}"


def data_blocks(prompt: str, nonce: str) -> dict[str, str]:
    """Read a prompt back: data by name, still quoted.

    Raises:
        ValueError: if a block does not close, or one of its lines is not quoted.
    """
    blocks: dict[str, list[str]] = {}
    name: str | None = None
    for line in prompt.split("\n"):
        if name is not None and line == end_line(name, nonce):
            name = None
        elif name is not None and not line.startswith(QUOTE):
            raise ValueError(f"a line of {name} is not quoted: {line!r}")
        elif name is not None:
            blocks[name].append(line)
        elif line.startswith(f"[{nonce}] ") and line.endswith(" begins"):
            name = line.removeprefix(f"[{nonce}] ").removesuffix(" begins")
            blocks[name] = []
    if name is not None:
        raise ValueError(f"the block {name} does not close")
    return {key: "\n".join(lines) for key, lines in blocks.items()}
