"""How much a text looks like plain English letters: the yardstick by which a decoding is believed or not.

The table holds, for a letter (row) and the one after it (column), 9 + log2 of how often that pair follows, rounded
and cut to 0..9. The first row and column stand for the gap between words. It was counted on the shipped training
prompts. A pair with a digit or a sign inside a word, written ``~``, counts 1.
"""

from __future__ import annotations

import re
from itertools import pairwise

_LETTERS = " abcdefghijklmnopqrstuvwxyz"
_AFTER = (  # noqa: SIM905 - a table reads better in columns
    "064543535512454550456225030 704440340404546040656221040 561107000410500700523500050 "
    "460306007405500700515400020 850036020500311500540320040 751344210201435230654032320 "
    "750005500600400700605400000 750007046600204400540400020 671007000500000700314300030 "
    "532544340002547430466040001 151116111111111811131711111 721008000600213100061200000 "
    "660066200603620530043300040 663007000500031550030400060 740466060403202400046320030 "
    "621332530203456440644635110 660006004501600640645400040 111111111111511111111911111 "
    "750247120603233500254320040 830406005503220440046402010 740206007500110600452302030 "
    "533344040500656140766000010 250008000700000500000000000 750026007600004600530000000 "
    "740304202600000270007400020 900204000300230620243000000 652228222522222422222522255"
).split()
_SCORE = {
    first + second: int(digit)
    for first, row in zip(_LETTERS, _AFTER, strict=True)
    for second, digit in zip(_LETTERS, row, strict=True)
}
_SCORE |= {first + second: 1 for first in _LETTERS + "~" for second in _LETTERS + "~" if "~" in first + second}
_EDGE = ".,!?;:\"()[]{}<>*\u201c\u201d\u2018\u2019'`-"
_INSIDE = re.compile(r"[^a-z ]")


def likeness(text: str) -> float:
    """Return the mean score of the letter pairs of ``text``, 0 to 9; 0.0 for a text without letters.

    Shipped English prompts have 5.1 and more; the same prompts in ROT13 at most 4.3, reversed at most 4.8.
    """
    words = [word.strip(_EDGE).replace("'", "").replace("\u2019", "") for word in text.lower().split()]
    joined = " ".join(word for word in words if word)
    if not joined:
        return 0.0
    line = f" {_INSIDE.sub('~', joined)} "
    return sum(_SCORE[a + b] for a, b in pairwise(line)) / (len(line) - 1)
