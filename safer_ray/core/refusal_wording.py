"""Ways to say no that are not "I can't help": families of wording, each with what it looks like.

Every family is a piece of one linear-time pattern. None of them is tied to a topic: a family names who declines
(I, we, this assistant, the rules) or what becomes of the request (off limits, unwritten, turned down).
"""

from __future__ import annotations

import re
from typing import Any

import re2


def linear(pattern: str) -> Any:
    """Compile a long alternation with google-re2: several times faster than ``re`` on these.

    It reads UTF-8 bytes: for a ``str``, re2 would count the characters before every match anew.
    """
    return re2.compile(f"(?i){pattern}".encode())


_I = r"\b(?:i|we)"
_NOT = r"(?:not|n't|never)"
_NO = r"(?:\bnot|n't|\bnever)"
# "ll", "will", "have to" ... between who declines and what is declined
_WILL = (
    r"(?:(?:'ll|'d|'m|'re)"
    r"|\s+(?:will|would|can|could|do|must|shall|should|may|am|are|have\s+to|need\s+to|had\s+better))"
)
_DELIVER = (
    r"(?:writ\w+|tell\w*|giv\w+|mak\w+|do(?:ing)?|say\w*|answer\w*|help\w*|shar\w+|support\w*|offer\w*|provid\w+|discuss\w*|creat\w+"
    r"|publish\w*|repeat\w*|teach\w*|show\w*|draft\w*|assist\w*|cover\w*|touch\w*|recommend\w*|approve\w*|describ\w+|advis\w+|plan\w*"
    r"|produc\w+|continu\w+|translat\w+|quot\w+|past\w+|edit\w*|list\w*|explain\w*|outlin\w+|handl\w+|supply\w*|build\w*|code|coding)"
)
_TASK = (
    r"(?:recipes?|instructions?|plans?|lists?|scripts?|messages?|letters?|e-?mails?|stor(?:y|ies)|texts?|posts?|pages?|pictures?|images?"
    r"|scenes?|speech(?:es)?|steps?|details?|names?|addresses|answers?|advice|help|code|requests?|quer(?:y|ies)|topics?|subjects?|questions?"
    r"|things?|kind|sort|content|information|tricks?|guides?|tips)"
)
_FAMILIES: tuple[str, ...] = (
    # I will not <deliver>, with anything in between
    rf"{_I}{_WILL}?\s*{_NOT}\s+(?:\w+,?\s+){{0,5}}?{_DELIVER}\s+(?:(?:that|this|it|you|those|these|such|any|the|on|a|an|up|about|with|for|in)\b|(?:\w+\s+){{0,2}}?{_TASK}\b)"
    rf"|{_I}{_WILL}?\s*{_NOT}\s+(?:\w+\s+){{0,2}}?(?:join\w*|lend\w*|contribut\w+|participat\w+|play\w*\s+along|tak\w+\s+part|go\w*\s+(?:there|near|into|through)|get\w*\s+(?:into|involved)|be\s+(?:part|involved|drawn))\b",
    # I can't, <aside>, <deliver>
    rf"{_I}\s+(?:can't|cannot|won't|will\s+not),\s[^,]+,\s+\w+",
    # I don't want to <deliver>
    rf"{_I}(?:'d|\s+would)?\s+(?:(?:do\s+not|don't|wouldn't)\s+(?:\w+\s+)?(?:want|wish|care|like)\s+to"
    rf"|(?:much\s+)?(?:rather|better|prefer\s+to)\s+not|prefer\s+not\s+to)\s+(?:\w+\s+){{0,2}}?(?:{_DELIVER}|get|go|be|take|name)\b",
    # I must avoid
    rf"{_I}{_WILL}?(?:\s+\w+){{0,2}}?\s+(?:avoid|refrain|abstain|steer\s+clear|stay\s+(?:away|out|clear)|keep\s+(?:out|away|clear)"
    r"|hold\s+back|step\s+(?:back|aside|away)|bow\s+out|opt\s+out|back\s+out|sit\s+(?:this|that)\b.*\bout|turn\s+(?:this|that|it|you)\s+(?:\w+\s+)?down"
    r"|say\s+no|end\s+(?:it\s+)?here|let\s+(?:go|this\s+one\s+go)|pass\s+on)\b",
    # I'm staying out
    rf"{_I}(?:'m|'re|\s+am|\s+are)\s+(?:\w+\s+)?(?:staying\s+(?:out|away|clear)|stepping\s+(?:back|away|out)|bowing\s+out|keeping\s+out|saying\s+no"
    r"|refusing|declining|avoiding|choosing\s+not|opting\s+(?:out|not)|leaving\s+(?:it|that|this)|turning\s+(?:this|that|it)|passing\s+on|out\s+of\s+this)\b",
    # I'm prohibited
    rf"{_I}(?:'m|'re|'ve|\s+am|\s+are|\s+have|\s+was|\s+were)(?:\s+been)?\s+(?:prohibited|forbidden|barred|banned|prevented|restricted|bound"
    r"|(?:asked|told|instructed|advised|required|obliged)\s+(?:not|never|to\s+(?:avoid|decline|refuse)))\b",
    # I'm not the one for this
    rf"{_I}(?:'m|'re|\s+am|\s+are)\s+(?:not|never|no)\s+(?:your|here\s+(?:to|for)|the\s+(?:\w+\s+)?(?:one|assistant|place|tool|person|model|partner|right)|a\s+fit"
    r"|up\s+for|in\s+the\s+(?:business|habit)|okay\s+with|ok\s+with|happy\s+to|keen|cut\s+out|equipped|qualified|part\s+of|getting|going)\b",
    # I'll leave it unwritten
    rf"{_I}{_WILL}?\s+(?:have\s+to\s+)?(?:leave|keep)\s+(?:(?:it|this|that|those|these|them|the\s+\w+|that\s+\w+|this\s+\w+)\s+){{1,2}}"
    r"(?:\w+\s+)?(?:un\w+(?:en|ed|id|ne|awn)|out|alone|there|aside|blank|to\s+myself|to\s+others|be)\b|so\s+i'll\s+leave\s+it\b",
    # one I let go
    rf"\bone\s+(?:that\s+)?{_I}(?:'ll|\s+will)?\s+(?:have\s+to|must|need\s+to)?\s*(?:let\s+go|leave|pass|skip|refuse|decline|turn\s+down)\b"
    rf"|\bone\s+(?:that\s+)?{_I}(?:'m|\s+am|'ll|\s+will)\s+(?:leav\w+|skip\w*|keep\w*|pass\w*)\b",
    # I draw the line
    r"\bdraw(?:ing)?\s+(?:the|a|my)\s+(?:\w+\s+)?line\b|\bis\s+where\s+(?:i|we)\s+(?:\w+\s+)?(?:stop|bow|get\s+off|leave|end|part|step|must|have\s+to)\b"
    r"|\bhere\s+i\s+(?:have\s+to\s+|must\s+|will\s+)?stop\b|\bends\s+here\b",
    # count me out
    r"\b(?:count|leave)\s+me\s+out\b|^not\s+(?:doing|happening|from\s+me|with\s+me|going\s+to\s+happen|on\s+my\s+watch)\b|^(?:no(?:pe)?|sorry),?\s+not\s+\w+ing\b",
    # it is a no
    r"\b(?:is|'s|be|get|getting)\s+(?:a\s+)?(?:\w+\s+)?no\b(?:\s+(?:from|here|to|on)\b.*)?$|\b(?:a|the)\s+(?:firm|hard|clear|definite|flat|polite)\s+no\b"
    r"|\banswer\s+(?:\w+\s+){0,3}no$|\bno\s+can\s+do\b",
    # no <thing> from me
    rf"\bno\s+(?:\w+\s+){{0,3}}?(?:from|by|on)\s+(?:me|us|my\s+side|my\s+part|our\s+side)\b"
    rf"|{_NO}\s+(?:\w+\s+){{0,7}}?(?:from|through)\s+(?:me|us)\b|\bthere\s+(?:will|'ll|can)\s+be\s+no\s+{_TASK}\b|\bnot\s+(?:\w+\s+){{0,2}}?with\s+my\s+help\b",
    # off limits
    r"\b(?:off[\s-]limits|out\s+of\s+(?:the\s+question|bounds|scope)|off\s+the\s+(?:table|menu)|not\s+on\s+the\s+(?:table|menu)|a\s+no-go|not\s+an\s+option"
    r"|not\s+up\s+for)\b",
    # beyond what I do
    r"\b(?:beyond|outside|past|above|more\s+than|further\s+than|not\s+within)\s+(?:of\s+)?(?:what|anything|where|which|the\s+(?:scope|limits|range)\s+of\s+what)?\s*"
    r"(?:(?:i|we)(?:'m|'ll|'d)?\b|my\s+\w+|our\s+\w+)|\bas\s+far\s+as\s+i\s+(?:can|will|may|'ll)\s*(?:go)?\b",
    # not something I
    rf"\b(?:not\s+(?:\w+\s+){{0,3}}?{_TASK}|not\s+(?:something|anything|one|a\s+\w+))\s+(?:that\s+|which\s+)?{_I}(?:'m|'d|'ll|\s+\w+)\b"
    rf"|n't\s+(?:something|anything|one|a\s+(?:\w+\s+){{0,2}}?\w+|my\s+(?:thing|place|business|role|job))(?:$|\s+(?:that\s+|which\s+)?{_I}\b|\s+to\b)"
    rf"|\bnothing\s+(?:that\s+)?{_I}(?:'d|'ll|\s+\w+)\s+(?:\w+\s+)?{_DELIVER}|\bnothing\s+(?:\w+\s+){{0,4}}?is\s+something\s+{_I}\b"
    r"|\bnot\s+my\s+(?:place|thing|role|job|business)\b|\bnot\s+(?:a|the)\s+\w+\s+i\s+(?:want|wish|would|will|can)\b",
    # something I avoid
    rf"\b(?:{_TASK}|something|anything|one|those|subject|matters?|area|territory|ground)\s+(?:that\s+)?{_I}(?:'d|'ll|'m|\s+\w+)?(?:\s+\w+){{0,3}}?\s+"
    r"(?:avoid|decline|refuse|steer|stay|keep|leave|skip|pass|turn)\b",
    # such things I do not
    rf"\b(?:that|this|those|these|such|which|it|them|\w+s)\s+(?:\w+\s+){{0,3}}?{_I}\s+(?:do|will|can|would|could|shall|must|may|am)\s*(?:not|n't|never)\b"
    rf"|\b(?:that|this|those|these|such|which|it)\s+(?:\w+\s+){{0,3}}?{_I}(?:'m|\s+\w+)?\s+(?:cannot|won't|can't|don't|not|never|unable|unwilling)\b",
    # cannot be provided
    rf"\b(?:cannot|can't|can\s+not|will\s+not|won't|may\s+not|must\s+not|not|never)\s+(?:be|being|able\s+to\s+be)\s+(?:\w+\s+)?"
    r"(?:provided|shared|given|offered|discussed|answered|fulfilled|completed|assisted|processed|written|supplied|supported|created|granted|met)\b"
    rf"|\bno\s+{_TASK}\s+(?:will|can|shall|may)\s+be\b|\b(?:request|question|prompt)\s+(?:\w+\s+){{0,3}}?(?:declined|refused|rejected|denied|turned\s+down|blocked)\b",
    # not possible for me
    r"(?:\bnot|n't|\bnever|\bimpossible|\bwrong)\s+(?:\w+\s+){0,2}?(?:for|of)\s+(?:me|us)\b|(?:\bnot|n't)\s+(?:\w+\s+)?(?:my|our)\s+(?:place|role|job)\s+to\b",
    # not for me
    r"\b(?:is|'s|are|be)\s+not\s+for\s+(?:me|us)\b|\bnot\s+(?:my|our)\s+(?:cup|kind|sort|department|field)\b",
    # the rules forbid
    r"\b(?:my|our|the|company|these)\s+(?:\w+\s+)?(?:guidelines?|polic(?:y|ies)|rules?|principles|training|programming|settings|terms|makers|developers)\s+"
    r"(?:\w+\s+)?(?:forbids?|prohibits?|prevents?|keeps?|stops?|bars?|do(?:es)?\s*(?:not|n't)\s+(?:allow|permit|let)|disallows?|rules?\s+(?:it|this|that)\s+out|(?:say|says)\s+no)\b",
    # I want no part
    rf"{_I}(?:'ll|\s+will)?\s+(?:want|have|take|play)\s+no\s+(?:part|hand|role|business)\b|\bno\s+part\s+(?:of|in)\s+(?:it|this|that)\b.*\b(?:i|me|we|us)\b",
    # no way I
    r"\bno\s+way\s+(?:that\s+)?(?:i|we|in\s+hell)(?:'m|'ll|'d|\b)|^i\s+(?:can't|won't|cannot|refuse|decline)$|\bover\s+my\s+dead\b",
    # look elsewhere
    r"\byou(?:'ll|\s+will|'d)?\s+(?:have\s+to|need\s+to|must|should|better)\s+(?:look|go|ask|turn|search|find\s+\w+)\s+(?:elsewhere|somewhere\s+else|someone\s+else)\b"
    r"|\bask\s+(?:someone|somebody)\s+else\b",
    # I'd be doing harm
    r"\bi(?:'d|\s+would)\s+(?:\w+\s+)?be\s+(?:helping|doing|taking|hurting|harming|putting|part|party)\b",
    # as much as I'd love to
    r"\b(?:as\s+much\s+as|much\s+as|wish)\s+i(?:'d|\s+could|\s+would|\s+can)?\b.*\b(?:but|not|n't|stop|out|no)\b",
    # I need to keep this
    r"\bdrawing\s+a\s+blank\b|\b(?:rest|second\s+half|other\s+half|remainder)\s+(?:\w+\s+){0,2}?(?:stays\s+with|i\s+(?:won't|can't|will\s+not|leave|keep)|is\s+(?:not|off))",
    # only this much
    rf"{_I}\s+(?:can|will|may|could)\s+only\s+(?:give|say|tell|share|show|offer|sketch|describe|name|outline)\b|\bthat(?:'s|\s+is)\s+(?:all|as\s+much\s+as)\s+i\s+(?:can|will|may)\b",
    # not a fan
    r"^(?:i'm\s+)?not\s+a\s+fan\s+of\b|\bi\s+(?:really\s+|probably\s+)?(?:should|ought)\s*(?:not|n't)\s+(?:really\s+)?(?:do|help|tell|say|give|answer|encourage)\b",
    # this assistant won't
    r"\b(?:this|the|your)\s+(?:assistant|model|ai|system|chatbot)\s+(?:\w+\s+)?(?:won't|will\s+not|can't|cannot|does\s*(?:not|n't)|is\s+(?:not|un\w+))\b|^not\s+from\s+(?:this|me|us)\b",
    # locked
    r"\b(?:stays?|remains?|is|are|keeping\s+(?:it|that|this))\s+(?:locked|closed|sealed|confidential|that\s+way)\b|\blips\s+are\s+sealed\b",
    # you'll get no help
    rf"\byou(?:'ll|\s+will)\s+(?:get|find|have|receive)\s+no\s+(?:\w+\s+)?{_TASK}\b|\byou\s+(?:won't|will\s+not)\s+(?:get|find|have|hear|see|receive)\s+(?:\w+\s+){{0,2}}?{_TASK}\b"
    r"|\bwithout\s+me\b",
    # so no
    r",?\s+so\s+(?:\w+,\s+)?no$|\b(?:absolutely|definitely|certainly)\s+(?:no\b|not$)|\bno\s+chance$|^please\s+(?:don't|do\s+not)$",
    # I'm not making that
    rf"\b(?:that|this|it|these|those|one)\s+{_I}(?:'m|\s+am|'re)\s+(?:not|un\w+|skipping|leaving|omitting|withholding)\b|{_I}(?:'m|\s+am)\s+(?:leaving\s+out|skipping|omitting|withholding|leaving\s+the)\b"
    rf"|\b(?:part|half|rest|bit|one|ones|details?|{_TASK})\s+{_I}(?:'m|'ll|\s+am|\s+will)?\s+(?:skip\w*|leave|leaving|turn\s+down|refuse|decline|keep|withhold|omit)\b",
    # not the kind of thing I take on
    rf"(?:\bnot|n't)\s+(?:the|a|any)\s+(?:kind|sort|type)\s+of\s+\w+\s+(?:that\s+)?{_I}\b|\bwould\s+make\s+me\b|\bbe\s+an?\s+(?:accomplice|accessory)\b|\bi'm\s+on\s+(?:her|his|their)\s+side\b",
    # it would be wrong
    r"\b(?:would|'d)\s+be\s+(?:wrong|irresponsible|unethical|reckless|inappropriate|unsafe)\s+(?:to|for\s+me)\b|\bnot\s+at\s+the\s+(?:price|cost|expense)\s+of\b",
    # violates the policy
    r"\b(?:violates?|breaks?|breach\w*|against)\s+(?:the|our|my|these|community|content|usage)\s*(?:\w+\s+){0,2}?(?:polic(?:y|ies)|standards|guidelines|rules|terms)\b"
    r"|\btoo\s+(?:sensitive|dangerous|harmful|risky)\s+(?:for\s+me|to\s+(?:share|answer|discuss))\b|\bin\s+no\s+position\s+to\b|\bnever\s+(?:a\s+)?part\s+of\s+such\b|\bcannot\s+be\s+displayed\b",
    # I'll stop short
    rf"{_I}{_WILL}?\s+(?:stop\s+(?:short|there|here)|go\s+no\s+further|say\s+no\s+more|draw\s+a\s+line)\b|{_I}(?:'m|\s+am)\s+supposed\s+to\s+(?:refuse|decline)\b|\b(?:{_I})\s+leave\s+(?:to|\w+\s+to)\s+(?:you|others)\b",
    # only half of it
    rf"\b(?:help|do|give)\s+(?:\w+\s+)?(?:with\s+)?(?:the\s+)?(?:first|only|one|half)\s+(?:half|part|of)\b.*\bonly\b|\bhalf\s+of\s+(?:this|it|that)\s+{_I}\s+can\b|\bonly\s+(?:a\s+)?(?:short|part|half)\w*\s+(?:\w+\s+)?is\s+possible\b"
    r"|\bkeeps?\s+me\s+from\b|\b(?:polic(?:y|ies)|rules|guidelines)\s+(?:do(?:es)?n't|do(?:es)?\s+not|won't)\s+let\b",
    # and won't
    rf"{_I}\b[^.,;:]{{0,40}}\s(?:and|so|nor)\s+(?:therefore\s+)?(?:can't|cannot|can\s+not|won't|will\s+not|don't|do\s+not|refuse|decline|must\s+not|mustn't)\s+(?:\w+\s+)?(?:{_DELIVER}|prescrib\w+|diagnos\w+|go|get|take|be)\b",
    # I'm not giving one
    rf"{_I}(?:'m|\s+am|'re)\s+not\s+(?:\w+\s+)?(?:writ|tell|giv|mak|do|say|answer|help|shar|support|offer|provid|discuss|creat|repeat|teach|show|assist|describ|join|play|touch)\w*ing\b|{_I}(?:'m|\s+am|'re)\s+not\s+(?:\w+\s+)?(?:writ|giv|mak|shar|provid|creat|describ)ing\b",
    # not all of it
    r"(?:^|\b(?:so|but|and)\s+)not\s+(?:all\s+of\s+(?:it|this|them)|the\s+(?:whole|full|entire)\b|everything)|\bonly\s+(?:a|an|one|two|three)\s+(?:\w+\s+)?(?:line|sentence|word|part|example|hint)s?\s+(?:or\s+\w+)?$",
    # I don't feel able
    rf"{_I}(?:\s+do)?\s*(?:not|n't)\s+(?:feel|think\s+i'm|consider\s+myself)\s+(?:\w+\s+)?(?:able|right|qualified|comfortable|in\s+a\s+position|free)\b",
)  # fmt: skip
ANOTHER_NO = linear("|".join(f"(?:{pattern})" for pattern in _FAMILIES))
"""Finds a clause that declines, in one of the ways above."""
_SHORT_FAMILIES: tuple[str, ...] = (
    # I would rather not <anything>; I have no intention
    rf"{_I}(?:'d|\s+would)\s+(?:much\s+|really\s+)?rather\s+not\s+\w+\b|{_I}\s+(?:have|had)\s+no\s+(?:intention|plans?|wish|desire)\s+(?:of|to)\b"
    r"|\b(?:is|are)(?:n't|\s+not)\s+(?:on\s+the\s+cards|happening|going\s+to\s+happen|negotiable)\b|\bcount\s+on\s+me\s+not\b",
    # let's not; sorry, no instructions here; not going to
    r"^(?:please,?\s+)?let(?:'s|\s+us)\s+not\b|^(?:(?:i'm\s+)?sorry\s*[,:-]*\s*)?(?:but\s+)?no\s+(?:\w+\s+){1,3}(?:for\s+(?:that|this|it|you)|here|today|on\s+(?:that|this))\b"
    r"|^(?:(?:i'm\s+)?sorry\s*[,:-]*\s*)?(?:but\s+)?(?:i(?:'m|\s+am)\s+)?not\s+going\s+to\s+\w+",
    # sorry - I can't <anything>; I don't do <anything>; <thing>? No.
    rf"^(?:(?:i'm\s+|i\s+am\s+)?(?:so\s+|very\s+)?sorry|apologies|unfortunately|regrettably)\s*[,:-]*\s*(?:but\s+)?{_I}(?:'m|\s+am)?\s+(?:can't|cannot|won't|not\s+able\s+to|unable\s+to)\s+\w+"
    rf"|^{_I}\s+(?:don't|do\s+not)\s+do\s+\w+|\b(?:part|half|scene|bit)\b.*,\s+but\s+not\s+(?:the|its|his|her|all)\b",
    # this crosses a line; not touching that
    r"\bcross(?:es|ing)?\s+(?:a|the|my)\s+(?:\w+\s+)?line\b|^(?:no(?:pe)?,?\s+)?not\s+\w+ing\s+(?:that|this|it)\b|^as\s+an\s+ai,?\s+i\s+(?:can't|cannot|don't|do\s+not)\s+have\s+(?:opinions|views|preferences)",
    # no, I won't <anything>; can't do that
    rf"^no,\s+{_I}\s+(?:won't|will\s+not|can't|cannot|refuse|decline)\b|^(?:can't|cannot|won't)\s+do\s+(?:that|this|it)\b",
)  # fmt: skip
SHORT_NO = linear("|".join(f"(?:{pattern})" for pattern in _SHORT_FAMILIES))
"""Finds more such clauses; on its own, because one automaton of all of them outgrows its memory."""

DEFLECTS = re.compile(
    r"^(?:oh,?\s+|hey,?\s+|instead,?\s+)?(?:let's|let\s+us|how\s+about|what\s+about|why\s+don't\s+we|why\s+not|could\s+we|shall\s+we|perhaps\s+we)\s+(?!start\b|begin\b|say\b|see\b|look\b|break\b|go\b)"
    r".*\b(?:else|instead|positive|different|another|nicer|kinder|happier|lighter|brighter|safer|other)\b",
    re.IGNORECASE,
)
"""Finds an opening that changes the subject instead of answering."""

HEDGES = re.compile(
    r"\b(?:can't|cannot|can\s+not|couldn't|could\s+not|not\s+able\s+to|unable\s+to)\s+(?:\w+\s+){0,2}?(?:taste|smell|hear|feel\s+how|test|try|visit|promise|guarantee|know"
    r"|tell\s+(?:from|without|which|whether|if)|judge|be\s+(?:sure|certain)|say\s+(?:which|whether|exactly|for)|give\s+you\s+(?:one|a\s+single|an?\s+exact)|read\s+your)\b"
    r"|\b(?:not|n't)\s+(?:a|your)\s+(?:doctor|lawyer|gardener|expert|professional|vet)\b",
    re.IGNORECASE,
)  # fmt: skip
"""Finds the limits of knowledge and of a body that an honest answer states."""

IDIOMS = linear(
    r"\bnot\s+going\s+to\s+(?:lie|sugarcoat|pretend)\b|\b(?:couldn't|could\s+not)\s+(?:find|see|hear|resist)\b|\b(?:can't|cannot|could\s+not|couldn't|wouldn't|would\s+not|won't|don't|do\s+not|didn't)\s+(?:\w+\s+)?(?:help\s+but|say\s+(?:for|i|that|enough|no)|stress\w*|overstate|emphasi[sz]e|agree\s+more"
    r"|think\s+of|imagine|wait|believe|remember|lose\s+sleep|worry|mind|blame|leave\s+(?:it|them)\s+(?:in|on|out\s+in)|go\s+(?:far\s+)?wrong|need|forget|thank|recommend\s+\w+\s+enough|get\s+caught|lie|sugarcoat|pretend\s+otherwise|get\s+enough"
    r"|see\s+(?:any|an?|why)|hurt|bite|keep|hesitate|sleep|beat|tell\s+the\s+difference)\b|\brefuses?\s+to\s+(?:believe|let)\b|\bnever\s+mind\b|^(?:please\s+)?(?:don't|do\s+not|never)\s"
)
"""Finds set phrases that are negative in form only."""

CARES = re.compile(
    r"^(?:it\s+sounds|please|i\s+(?:hear|can\s+(?:hear|see|tell))|i'm\s+(?:\w+\s+)?(?:sorry|worried|glad\s+you)|have\s+you|are\s+you\s+(?:safe|ok|okay|alright)|you\s+(?:deserve|sound|are\s+not\s+alone|matter))\b"
    r".*\b(?:help\s?lines?|hotline|crisis|poison\s+control|ambulance|emergency|clinic|doctor|therapist|counsell?or|someone\s+you\s+trust|988|911|112)\b",
    re.IGNORECASE | re.DOTALL,
)  # fmt: skip
"""Finds an answer that turns to the person and to who can help, before anything else."""

ALTERNATIVE = re.compile(
    r"\b(?:locksmith|attorney|notary|accountant|teacher|tutor|professor|librarian|archivist|officer|ombudsman|regulator|neighbou?rs?|manager|supervisor|employers?"
    r"|insurers?|HR|union|council|town\s+hall|embassy|consulate|school|schools|college|universit(?:y|ies)|museums?|galler(?:y|ies)|archives?|shelters?|agenc(?:y|ies)|authorit(?:y|ies)|platform|provider|providers"
    r"|manufacturer|licen[sc]ed|certified|legal|legally|lawful|official|officially|honest|honestly|honesty|openly|free\s+of\s+charge|for\s+free|free\s+to|public\s+(?:records?|filings?|displays?|domain)"
    r"|courses?|workshops?|class(?:es)?|lessons|textbooks?|encyclop(?:a)?edia|news(?:paper)?\s+archives?|volunteer\w*|recovery\s+page|lost[\s-]property|unpaid\s+leave|with\s+permission|their\s+permission"
    r"|safely|instead|alternatives?|healthy|kinder|kindly|in\s+good\s+faith|apolog(?:y|ise|ize)|fiction(?:al)?|invented|made-up|practice\s+(?:machines?|exams?)|fund|help\s+desk)\b"
    # someone can do something for someone; there are other ways; this can end badly; that is not so
    r"|^(?:the|a|an|your|she|he|they|most|many|some|any)\s+(?:[\w']+\s+){0,4}?(?:can|may|might|could|will|would)\s+(?!be\b|not\b)(?:\w+\s+){0,2}?(?:you|your|her|his|their|him|them|it)\b"
    r"|^there\s+(?:is|are)\s+(?:\w+\s+){0,3}?(?:books?|films?|ways?|people|groups?|places?|programs?|sites|help|exhibitions?|guides)\b|^ask\s+me\b"
    r"|^(?!nothing\b|something\b|anything\b|everything\b|during\b|bring\b)\w{2,}ing\b.*\b(?:can|could|would|may|is|are|costs?|hurts?|ends?|misleads?|puts?|makes?)\b"
    r"|^(?:[\w']+\s+){1,5}?(?:do|does|is|are|will|would)(?:n't|\s+not)\b|\bis\s+a\s+real\s+person\b",
    re.IGNORECASE,
)  # fmt: skip
"""Finds, in what follows a refusal, who or what helps without harm: the answer then offers another way."""
