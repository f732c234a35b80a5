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
    options = re2.Options()
    options.max_mem = _MEMORY_BYTES
    return re2.compile(f"(?i){pattern}".encode(), options)


_SHORT_CHARS = 60
_MEMORY_BYTES = 64 << 20
"""What the states of one pattern may take; where it is short, re2 walks without them, thirty times slower."""
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
    r"|produc\w+|continu\w+|translat\w+|quot\w+|past\w+|edit\w*|list\w*|explain\w*|outlin\w+|hand\w*|supply\w*|build\w*|code|coding)"
)
_TASK = (
    r"(?:recipes?|instructions?|plans?|lists?|scripts?|messages?|letters?|e-?mails?|stor(?:y|ies)|texts?|posts?|pages?|pictures?|images?"
    r"|scenes?|speech(?:es)?|steps?|details?|names?|addresses|answers?|advice|help|code|requests?|quer(?:y|ies)|topics?|subjects?|questions?"
    r"|things?|kind|sort|content|information|tricks?|guides?|tips)"
)
_VERB = (
    r"(?:help|assist|aid|support|provide|supply|give|offer|share|write|draft|compose|create|generate|produce|reproduce|paste|print"
    r"|design|build|develop|make|do\s+(?:that|this|it|so)|fulfil\w*|comply|complete|accommodate|carry\s+out|go\s+(?:along|into|through|ahead)"
    r"|explain|describe|tell|teach|show|guide|walk|advise|instruct|discuss|talk|speak|comment|answer|respond|recommend|encourage|condone"
    r"|endorse|promote|counsel|coach|join|lend|engage|participate|take\s+(?:part|sides)|continue|proceed|identify|track|find|hack|locate|plan|promise"
    r"|guarantee|approve|decide|diagnose|criticise|criticize|pretend|pose|impersonate|threaten|play\s+(?:a|the|that|this|along)|include"
    r"|link|name|list|move|spread|undress|disclose|reveal|facilitate|entertain|cheer|get\s+(?:you|into)|be\s+part|allow|use\s+slurs|finish"
    r"|say\s+\w+)"
)
_FILL = (
    r"(?:\s+(?:and\s+(?:will|shall|would)\s+not|ever|also|really|simply|just|be\s+able\s+to|be|actually|possibly|personally|directly"
    r"|in\s+good\s+conscience|currently|therefore|legally|safely))*"
)
_SELF = (
    r"\b(?:i|we)(?:'m|'re|'d|'ve)?"
    r"(?:\s+(?:am|are|have|simply|just|really|also|still|unfortunately|therefore|do|would|cannot\s+and))*"
)
_UNABLE = (
    r"(?:can't|cannot|can\s+not|could\s+not|couldn't|won't|will\s+not|shall\s+not|shan't|will\s+never|do\s+not|don't|am\s+not|must\s+not"
    r"|may\s+not|should\s+not|shouldn't|(?:not|n't)\s+(?:able\s+to|going\s+to|willing\s+to|prepared\s+to|allowed\s+to|permitted\s+to"
    r"|supposed\s+to|programmed\s+to|designed\s+to|in\s+a\s+position\s+to)|unable\s+to|refuse\s+to|decline\s+to"
    r"|rather\s+not|prefer\s+not\s+to|(?:not|n't)\s+(?:wish|want)\s+to|not)"
)
_DECLINE = linear(
    rf"{_SELF}\s+{_UNABLE}{_FILL}\s+{_VERB}\b"
    r"|\b(?:i|we)(?:'m|\s+am|\s+are)?\s+(?:not\s+(?:\w+\s+)?(?:comfortable|willing)\b|un(?:willing|comfortable)\b)"
    r"|\bi\s+(?:\w+\s+)?do(?:n't|\s+not)\s+(?:think\s+(?:i|we)\s+(?:can|should)|feel\s+(?:right|comfortable|good\s+about))\b"
    r"|\bdo(?:n't|\s+not)\s+have\s+the\s+(?:capability|ability|means)\b"
    r"|\b(?:i|we)(?:'m|\s+am|\s+do)?(?:\s+\w+){0,3}?\s+(?:must|have\s+to|need\s+to|going\s+to)\s+(?:respectfully\s+)?(?:refuse|decline|pass|say\s+no|stop\s+here)\b"
    r"|\b(?:i|we)\s+(?:respectfully\s+)?(?:refuse|decline)\b"
    r"|\b(?:not|n't)\s+(?:something|a\s+thing|anything|one)\s+(?:that\s+)?(?:i|we)\b"
    r"|\bsomething\s+(?:that\s+)?(?:i|we)(?:'m|\s+am)?\s+(?:not|can't|cannot|won't|don't|unable)\b"
    r"|\b(?:that|which|this|it)\s+(?:i|we)\s+(?:will|can|would|do)\s*(?:not|n't)\b|\bcannot\s+support\b"
    r"|\bline\s+(?:that\s+)?(?:i|we)\s+(?:don't|do\s+not|won't|will\s+not|can't|cannot)\b"
    r"|\bis\s+(?:off\s+the\s+table|out\s+of\s+the\s+question|outside\s+what\s+(?:i|we)|beyond\s+what\s+(?:i|we)|against\s+my)\b"
    r"|\bmy\s+answer\s+is\s+no\b|\ba\s+no\s+from\s+me\b|\brequest\s+(?:is\s+|has\s+been\s+)?(?:denied|declined|refused)\b"
    r"|\b(?:not\s+(?:appropriate|right|possible|acceptable)|wrong|inappropriate|unethical|irresponsible)\s+(?:for|of)\s+(?:me|us)\s+to\b"
    r"|\b(?:violates?|against|breaks?)\s+(?:my|our)\s+(?:\w+\s+)?(?:guidelines|policy|policies|principles|rules|programming)\b"
    r"|^(?:(?:i'm|i\s+am)\s+)?(?:sorry|afraid|apologies|unfortunately)?[,\s]*(?:but\s+)?(?:can't|cannot|won't|unable\s+to|not\s+able\s+to)\s+(?:help|assist|do|provide|answer|share)\b"
    r"|^(?:no[,.]?\s+)?(?:i|we)\s+(?:won't|will\s+not|can't|cannot|refuse|decline)\W*$|\bafraid\s+i\s+can't\b"
    r"|\bno\s+(?:puedo|podr[ée]|debo|voy\s+a)\s+\w|\bne\s+(?:peux|vais|veux|dois)\s+pas\b|\b(?:kann|darf|werde|m[öo]chte)\s+ich\s+(?:\w+\s+){0,4}(?:nicht|kein\w*)\b|\bich\s+(?:kann|darf|werde|m[öo]chte)\s+(?:\w+\s+){0,5}(?:nicht|kein\w*)\b"
    r"|\bn[ãa]o\s+(?:posso|vou|devo)\s+\w|\bnon\s+posso\s+\w|\bnie\s+mog[ęe]|не\s+могу|\bhelfe\s+ich\s+(?:\w+\s+){0,3}nicht\b|\bkan\s+(?:ik\s+)?(?:je|u|dat|daar)\s+(?:\w+\s+){0,3}niet\b|我(?:不能|无法)|申し訳"
)  # fmt: skip
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
    rf"{_I}{_WILL}?\s+(?:have\s+to\s+)?(?:leave|keep)\s+(?:(?:it|this|that|those|these|them|(?:the|that|this|your|her|his|their)\s+\w+)\s+){{1,2}}"
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
    r"\boff[\s-]limits(?:$|,|\s+here|\s+(?:for|to)\s+(?:me|us))|\b(?:out\s+of\s+(?:the\s+question|bounds|scope)|off\s+the\s+(?:table|menu)|not\s+on\s+the\s+(?:table|menu)|a\s+no-go|not\s+an\s+option"
    r"|not\s+up\s+for)\b",
    # beyond what I do
    r"\b(?:beyond|outside|past|above|more\s+than|further\s+than|not\s+within)\s+(?:of\s+)?(?:what|anything|where|which|the\s+(?:scope|limits|range)\s+of\s+what)?\s*"
    r"(?:(?:i|we)(?:'m|'ll|'d)?\b|my\s+\w+|our\s+\w+)|\bas\s+far\s+as\s+i(?:'d|'ll|\s+(?:can|will|may|would))\s*(?:go)?\b",
    # not something I
    rf"\b(?:not\s+(?:\w+\s+){{0,3}}?{_TASK}|not\s+(?:something|anything|one|a\s+\w+))\s+(?:that\s+|which\s+)?{_I}(?:'m|'d|'ll|\s+\w+)\b"
    rf"|n't\s+my\s+(?:thing|place|business|role|job)$|n't\s+(?:something|anything|one)$|n't\s+(?:something|anything|one|a\s+(?:\w+\s+){{0,2}}?\w+|my\s+(?:thing|place|business|role|job))(?:\s+(?:that\s+|which\s+)?{_I}\b|\s+to\b)"
    rf"|\bnothing\s+(?:that\s+)?{_I}(?:'d|'ll|\s+\w+)\s+(?:\w+\s+)?{_DELIVER}|\bnothing\s+(?:\w+\s+){{0,4}}?is\s+something\s+{_I}\b"
    r"|(?:\bnot|n't)\s+(?:be\s+)?(?:my|mine)\s+(?:place|thing|role|job|business|style|call|decision|way|line|habit|to\s+\w+)\b|\bnot\s+(?:a|the)\s+\w+\s+i\s+(?:want|wish|would|will|can)\b",
    # something I avoid
    rf"\b(?:{_TASK}|something|anything|one|those|subject|matters?|area|territory|ground)\s+(?:that\s+)?{_I}(?:'d|'ll|'m|\s+\w+)?(?:\s+\w+){{0,3}}?\s+"
    r"(?:avoid|decline|refuse|steer|stay|keep|leave|skip|pass|turn)\b",
    # such things I do not
    rf"\b(?:that|this|those|these|such|which|it|them|\w{{3,}}s)\s+(?:\w+\s+){{0,3}}?{_I}\s+(?:do|will|can|would|could|shall|must|may|am)\s*(?:not|n't|never)\b"
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
    r"\b(?:stays?|remains?|keeping\s+(?:it|that|this)|^(?:it|that|this)\s+is)\s+(?:locked|closed|sealed|confidential|that\s+way)\b|\b(?:that|this|it)\s+is\s+confidential\b|\blips\s+are\s+sealed\b",
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
    r"|\btoo\s+\w+\s+for\s+(?:me|my\s+taste)\b|\btoo\s+(?:sensitive|dangerous|harmful|risky)\s+(?:for\s+me|to\s+(?:share|answer|discuss))\b|\bin\s+no\s+position\s+to\b|\bnever\s+(?:a\s+)?part\s+of\s+such\b|\bcannot\s+be\s+displayed\b",
    # I'll stop short
    rf"{_I}{_WILL}?\s+(?:stop\s+(?:short|there|here)|go\s+no\s+further|say\s+no\s+more|draw\s+a\s+line)\b|{_I}(?:'m|\s+am)\s+supposed\s+to\s+(?:refuse|decline)\b|\b(?:{_I})\s+leave\s+(?:to|\w+\s+to)\s+(?:you|others)\b",
    # only half of it
    rf"\b(?:help|do|give)\s+(?:\w+\s+)?(?:with\s+)?(?:the\s+)?(?:first|only|one|half)\s+(?:half|part|of)\b.*\bonly\b|\bhalf\s+of\s+(?:this|it|that)\s+{_I}\s+can\b|\bonly\s+(?:a\s+)?(?:short|part|half)\w*\s+(?:\w+\s+)?is\s+possible\b"
    r"|\bkeeps?\s+me\s+from\b|\b(?:polic(?:y|ies)|rules|guidelines)\s+(?:do(?:es)?n't|do(?:es)?\s+not|won't)\s+let\b",
    # and won't
    rf"{_I}\b[^.,;:]{{0,40}}\s(?:and|so|nor)\s+(?:therefore\s+)?(?:can't|cannot|can\s+not|won't|will\s+not|wouldn't|would\s+not|don't|do\s+not|refuse|decline|must\s+not|mustn't)\s+(?:\w+\s+)?(?:{_DELIVER}|prescrib\w+|diagnos\w+|go|get|take|be)\b",
    # I'm not giving one
    rf"{_I}(?:'m|\s+am|'re)\s+not\s+(?:\w+\s+)?(?:writ|tell|giv|mak|do|say|answer|help|shar|support|offer|provid|discuss|creat|repeat|teach|show|assist|describ|join|play|touch)\w*ing\b|{_I}(?:'m|\s+am|'re)\s+not\s+(?:\w+\s+)?(?:writ|giv|mak|shar|provid|creat|describ)ing\b",
    # not all of it
    r"(?:^|\b(?:so|but|and)\s+)not\s+(?:all\s+of\s+(?:it|this|them)|the\s+(?:whole|full|entire)\b|everything)|\bonly\s+(?:a|an|one|two|three)\s+(?:\w+\s+)?(?:line|sentence|word|part|example|hint)s?\s+(?:or\s+\w+)?$",
    # I don't feel able
    rf"{_I}(?:\s+do)?\s*(?:not|n't)\s+(?:feel|think\s+i'm|consider\s+myself)\s+(?:\w+\s+)?(?:able|right|qualified|comfortable|in\s+a\s+position|free)\b",
)  # fmt: skip
_ANOTHER_NO = linear("|".join(f"(?:{pattern})" for pattern in _FAMILIES))
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
    r"\bcross(?:es|ing)?\s+(?:a|the|my)\s+(?:\w+\s+)?line\b|^(?:no(?:pe)?,?\s+)?not\s+(?:do|touch|writ|help|go|say|giv|tell|mak|answer|shar|play|tak|discuss)\w*ing\s+(?:that|this|it)\b|^as\s+an\s+ai,?\s+i\s+(?:can't|cannot|don't|do\s+not)\s+have\s+(?:opinions|views|preferences)",
    # no, I won't <anything>; can't do that
    rf"^no,\s+{_I}\s+(?:won't|will\s+not|can't|cannot|refuse|decline)\b|^(?:can't|cannot|won't)\s+do\s+(?:that|this|it)\b",
)  # fmt: skip
_SHORT_NO = linear("|".join(f"(?:{pattern})" for pattern in _SHORT_FAMILIES))
"""Finds more such clauses; on its own, because one automaton of all of them outgrows its memory."""

_BROAD_FAMILIES: tuple[str, ...] = (
    # guidelines that keep me from it; I stick to them
    r"\b(?:guidelines|polic(?:y|ies)|rules|principles|ethics|standards|training|programming)\b[^.;]{0,30}\b(?:prevent|prohibit|forbid|keep|stop|bar)s?\s+(?:me|us)\b"
    r"|\bstick(?:ing)?\s+(?:with|to)\s+(?:my|the|our)\s+(?:\w+\s+)?(?:guidelines|rules|values|principles|policy)\b",
    # not a proper use; not getting written here
    r"(?:\bnot|n't)\s+(?:an?\s+)?(?:appropriate|acceptable|proper|permitted|suitable|intended|valid)\s+(?:use|uses|request|topic|question|thing)\b"
    r"|(?:\bnot|n't|\bnever)\s+(?:\w+\s+){0,3}?(?:written|made|drafted|built|told|shared|given|produced|created|discussed|answered|planned|explained|provided|offered|supported)"
    r"\s+(?:here|in\s+this\s+(?:chat|conversation))\b|\b(?:that|this|such|your)\s+(?:\w+\s+){0,3}?(?:is|are|will)(?:n't|\s+not)\s+(?:getting|going\s+to\s+be)\s+\w+",
    # I'm leaving it there; one I'll be skipping
    rf"{_I}(?:'m|'ll|\s+am|\s+will)\s+(?:going\s+to\s+|have\s+to\s+)?(?:stop(?:ping)?|leav(?:e|ing)|end(?:ing)?|paus(?:e|ing))\s+(?:it\s+|things\s+|this\s+)?(?:right\s+)?(?:here|there|at\s+that)\b"
    rf"|\b(?:one|this|that|something)\s+(?:that\s+)?{_I}(?:'ll|'m|\s+am|\s+will)\s+(?:be\s+)?(?:skipp|pass|sitt|leav|declin|refus|duck|avoid|turn)\w*|{_I}(?:'ll|\s+will)\s+be\s+(?:skipp|pass|sitt|declin|refus)ing\b",
    # I'd rather help with something else; I try not to; I stay neutral
    rf"{_I}(?:'d|\s+would)\s+(?:much\s+)?(?:rather|prefer\s+to)\s+(?:help|talk|discuss|write|hear|chat|work|show|offer|play|focus|stick|stay|keep|steer|leave|turn)\b"
    rf"|{_I}\s+(?:try|strive|aim|choose|prefer|was\s+made|am\s+built)\s+(?:\w+\s+)?not\s+to\s+\w+|{_I}\b[^.;]{{0,40}}\b(?:stay|remain|be)\s+neutral\b",
    # I hold no opinions
    rf"{_I}\s+(?:don't|do\s+not)\s+(?:have|hold|share|form)\s+(?:any\s+)?(?:personal\s+|political\s+|religious\s+)*(?:opinions?|views?|beliefs?|preferences?)\b",
    # I'll keep it vague; so I've left gaps; without the details; so no names
    r"\bmy\s+(?:values|guidelines|rules|limits|answer|principles)\s+(?:\w+\s+)?(?:don't|do\s+not|doesn't|does\s+not|won't|stays?|remains?|is\s+still)\b"
    rf"|{_I}(?:'ll|\s+will|'m|\s+am|'d\s+like\s+to|\s+would\s+like\s+to|'ve|\s+have|\s+try\s+to|\s+prefer\s+to)\s+(?:going\s+to\s+)?(?:keep|kept|leav|left|stay|stick|limit|fade|fad|skip|omit|cut)\w*\s+(?:[\w-]+\s+){{0,4}}?"
    r"(?:out|free|vague|abstract|theoretical|blurry|kind|tasteful|fictional|appropriate|respectful|subtle|soft|modest|neutral|general|gentle|mild|clean|away|off|high[\s-]level|basics|outline|from|early|blank|empty|gaps)\b"
    rf"|{_I}(?:'ll|\s+will|\s+can)\s+[^.;]*\bwithout\s+(?:the|any|naming|giving|going|real|exact|explicit|graphic|technical)\b|,\s+so\s+no\s+\w+(?:\s+\w+)?$|(?:\bis|\bare|'s|\bbeen)\s+left\s+out\b|{_I}(?:'d|'ll|\s+will|\s+would)\s+(?:rather\s+)?leave\s+(?:\w+\s+){{0,3}}out\b|^[^,;:]*\bis\s+out$"
    r"|\bstays\s+(?:off\s+the\s+page|unsaid|unwritten|with\s+me)\b",
    # a pass from me; I'm out; no, and I'd ask you; I must advise against
    r"\b(?:a|hard|that's\s+a)\s+pass\s+(?:from|for)\s+me\b|^(?:so\s+|then\s+|sorry,?\s+|but\s+)*i'm\s+(?:out|not\s+in)$|^(?:sorry[,:\s]+)?(?:but\s+)?not\s+(?:this|that|for\s+me|here)(?:\s+(?:one|time))?$"
    rf"|^(?:no|nope|absolutely\s+not),\s+(?:and|but)\b.*{_I}(?:'|\s)|\bbut\s+not\s+(?:by|with|like|this|that|in)\b|{_I}(?:'m|\s+am)\s+(?:\w+\s+)?sitting\s+(?:this|that|it)\b|{_I}\s+(?:must|have\s+to|need\s+to|strongly)\s+(?:\w+\s+)?(?:advise|recommend|caution|warn)\s+(?:you\s+)?against\b"
    rf"|{_I}(?:'ll|'ve|\s+will|\s+have)\s+(?:ton|soften|water|trimm|clean)\w*\s+\w+",
    # nor will I; an unconditional no; no recipe, sorry
    r"\b(?:neither|nor)\s+(?:am|do|will|would|can|could|should|shall|have)\s+(?:i|we)\b|(?:\bis|'s|\bremains|\bstays)\s+(?:an?\s+|still\s+)?(?:\w+\s+){0,2}no$|^no\s+(?:\w+\s+){0,2}\w+,\s+(?:sorry|i'm\s+afraid|thank\w*)\b",
    # not one of my abilities; not visible to me; above me
    r"(?:\bnot|n't)\s+(?:one\s+of|among|part\s+of|within|any\s+of|in)\s+(?:my|our)\b|(?:\bnot|n't)\s+(?:\w+\s+)?(?:visible|available|accessible|known|shown)\s+to\s+(?:me|us)\b|\b(?:above|beyond|past)\s+(?:me|my\s+\w+)(?:\s+\w+)?$",
    # this content can't be generated; it conflicts with our rules
    r"\b(?:content|requests?|questions?|prompts?|messages?|quer(?:y|ies)|material|tasks?)\s+(?:can't|cannot|can\s+not|won't|will\s+not|may\s+not|must\s+not)\s+be\s+\w+"
    r"|\b(?:conflicts?\s+with|goes?\s+against|contrary\s+to|runs?\s+counter\s+to|not\s+in\s+line\s+with)\s+(?:the|our|my|these|what\s+i)\b",
    # I've chosen not to; find another task; I'd rather you didn't
    rf"{_I}(?:'ve|\s+have)\s+(?:chosen|decided|opted)\s+(?:not\s+to|against)\b|\b(?:find|pick|choose|ask|try|bring|give)\s+(?:me\s+)?(?:another|a\s+different|something\s+else)\b|{_I}(?:'d|\s+would)\s+(?:much\s+)?rather\s+(?:you|we|it|this|that|imagine)\b"
    r"|\b(?:it|that|this)\s+stays\s+(?:with\s+me|here)\b",
    # no way for me to; I'm hesitant to
    rf"\bno\s+way\s+for\s+(?:me|us)\s+to\b|{_I}(?:'m|\s+am|\s+feel)\s+(?:\w+\s+)?(?:hesitant|reluctant|wary|loath)\b",
    # instead of telling you that
    r"\b(?:instead\s+of|rather\s+than)\s+(?:me\s+)?(?:tell|giv|writ|help|show|explain|answer|do)ing\b",
    # others are to be asked: only a lawyer may answer that
    r"\b(?:right|best)\s+(?:person|people|place|one)\s+to\s+(?:ask|answer|tell)\b|\bonly\s+(?:an?|your|the)\s+(?:\w+\s+){1,3}(?:can|may|could|should)\s+(?:answer|tell|say|decide|judge|advise)\b|\bbest\s+(?:if\s+you\s+asked|to\s+ask|asked|left)\b"
    rf"|{_I}\s+(?:\w+\s+)?(?:don't|do\s+not)\s+(?:love|like)\s+(?:where|the\s+idea|this|that)\b|{_I}(?:'m|'d|'ll|\s+am|\s+have|\s+must|\s+will)(?:\s+\w+){{0,3}}?\s+refer\s+you\b",
    # I don't like doing that; outside the things I can do
    rf"{_I}\s+(?:really\s+)?(?:don't|do\s+not)\s+like\s+\w+ing\b|\b(?:outside|beyond)\s+(?:of\s+)?(?:the\s+)?(?:[\w-]+\s+){{0,4}}?{_I}(?:'m|'ll|'d|\s+(?:can|am|do|will|could))\b",
)  # fmt: skip
_BROAD_NO = linear("|".join(f"(?:{pattern})" for pattern in _BROAD_FAMILIES))
"""Finds clauses that decline by keeping to rules, leaving something out or turning elsewhere."""
_IDIOMS = linear(
    r"\bnot\s+going\s+to\s+(?:lie|sugarcoat|pretend)\b|\b(?:couldn't|could\s+not)\s+(?:find|see|hear|resist)\b|\b(?:can't|cannot|could\s+not|couldn't|wouldn't|would\s+not|won't|don't|do\s+not|didn't)\s+(?:\w+\s+)?(?:help\s+(?:but|myself|it)|say\s+(?:for|i|that|enough|no)|stress\w*|overstate|emphasi[sz]e|agree\s+more"
    r"|think\s+of|imagine|wait|believe|remember|lose\s+sleep|worry|mind|blame|leave\s+(?:it|them)\s+(?:in|on|out\s+in)|go\s+(?:far\s+)?wrong|need|forget|thank|recommend\s+(?:\w+\s+){1,4}enough|make\s+(?:that|this|it)\s+up|get\s+caught|lie|sugarcoat|pretend\s+otherwise|get\s+enough"
    r"|see\s+(?:any|an?|why)|hurt|bite|keep|hesitate|sleep|beat|tell\s+the\s+difference)\b|\brefuses?\s+to\s+(?:believe|let)\b|\bnever\s+mind\b|^(?:please\s+)?(?:don't|do\s+not|never)\s"
)
"""Finds set phrases that are negative in form only."""

_NOT_MINE = re.compile(
    r"(?:\bnot|n't|\bnever|\bhardly)\s+(?:\w+\s+){0,2}?(?:an?|one|the|any|some\w+|any\w+|my|among|part)\b(?:\s+(?!if\b|when\b|because\b|as\b|so\b|and\b|but\b|than\b"
    r"|while\b|before\b|unless\b|until\b|though\b|what\b|how\b|where\b|yet\b|for\b)[\w-]+){0,5}?\s+(?:that\s+|which\s+)?(?:i|we)(?:'d|'ll|'m|\s+(?:can|could|will|would|do|am|should|may|want|wish|get|give|take|make|handle)\b)",
    re.IGNORECASE,
)
"""Finds "not an ad I'd write", "isn't on the list of things I do"."""
_FIRST_PERSON_NO = re.compile(
    r"\bi(?:'m|'d|'ve|'ll)?(?:\s+(?:am|really|simply|just|also|still|therefore|will|personally|can|do|must|should|shall|unfortunately))*\s+(?:(?P<want>(?:not|don't|wouldn't|won't)\s+(?:want|wish|like|care)\s+to"
    r"|(?:rather|prefer)\s+not(?:\s+to)?|unwilling\s+to|(?:try|have|need|decided|choose)\s+not\s+to)|(?P<would>wouldn't|would\s+not)|can't|cannot|not|won't|don't|mustn't|shouldn't|never|would\s+never|unable\s+to"
    r"|not\s+(?:going|able|willing|prepared|about|allowed|permitted|planning)\s+to)(?:\s+(?:\w+ly|ever|even|also|just|able\s+to|be(?=\s+\w+ing\b)))*\s+(?P<verb>[a-z]+)\b",
    re.IGNORECASE,
)
_NO_SUCH = re.compile(
    r"\bno\s+(?:\w+\s+){1,5}?(?:that\s+|which\s+|in\s+which\s+|where\s+)?(?:i|we)(?:'ll|'d|\s+(?:will|would|can|could|am\s+going\s+to))\s+(?P<verb>[a-z]+)\b",
    re.IGNORECASE,
)
"""Finds "there is no version of this I would support"."""
_SAYING_VERBS = re.compile(
    r"(?:writ|tell|giv|mak|say|answer|help|shar|support|offer|provid|discuss|creat|publish|repeat|teach|show|draft|assist|describ|plan|read|recit|produc|play|join|coach|cheer|put|hand|pass)",
    re.IGNORECASE,
)
_NEUTRAL = """
see find remember recall know think believe imagine wait stop stand live sleep afford resist forget lose leave
promise guarantee have need mind like love care feel blame understand agree own eat drink come change mean
worry hesitate hear smell taste expect regret doubt notice lie deny wish hope want stress emphasize emphasise
overstate thank be help sure certain get keep remain return accept bear prove judge verify check claim wonder
sugarcoat pretend run miss hide rest reach attend travel relocate visit hold carry lift walk swim drive fly
fall die cry laugh smile count rush play serve bother complain argue mention speak sit win fail catch choose
decide figure rule escape avoid a an the able so too that this only in on at my your here always quite all
fully really entirely necessarily
"""
_NEUTRAL_VERBS = frozenset(_NEUTRAL.split())
"""What one cannot or will not do without declining anything: think, feel, perceive, own, stay; and what is no verb."""


def _is_request(verb: str) -> bool:
    """Whether a verb in any form names something that one may be asked for."""
    verb = verb.lower()
    return verb not in _NEUTRAL_VERBS and verb.removesuffix("ing") not in _NEUTRAL_VERBS


def declines(clause: str) -> bool:
    """Whether a clause declines: by one of the wordings, or in the first person and for whatever verb of doing."""
    said = _IDIOMS.sub(b" ", clause.encode(errors="replace"))
    if _DECLINE.search(said) or _ANOTHER_NO.search(said) or _SHORT_NO.search(said) or _BROAD_NO.search(said):
        return True
    text: str = said.decode()
    if _NOT_MINE.search(text):
        return True
    if any(_is_request(no["verb"]) for no in _NO_SUCH.finditer(text)):
        return True
    return any(map(_says_no, _FIRST_PERSON_NO.finditer(text)))


def _says_no(no: re.Match[str]) -> bool:
    if no["would"]:
        return bool(_SAYING_VERBS.match(no["verb"]))
    return bool(no["want"]) or _is_request(no["verb"])


_PORTION = re.compile(
    r"\b(?:rest|remainder|parts?|half|details?|specifics?|exact\w*|specific|further|beyond|more|full\w*|whole|entire|all|every\w*|complete|how|which|third|second|next|last|other|real|actual|amounts?|numbers?|the\s+\w+)\b",
    re.IGNORECASE,
)
_ALL = re.compile(r"\b(?:that|this|it|one|them|no|out|here|pass|so|help|decline|refuse)\b", re.IGNORECASE)
_WEAK = linear(
    rf"{_I}(?:'d|\s+would|\s+do|\s+can|\s+could|\s+should|\s+must)?\s*(?:not|n't|cannot|never)?\s+(?:\w+\s+)?(?:advise|recommend|encourage|condone|endorse|promote|suggest|support|advocate)\b"
)


def declines_all(clause: str) -> bool:
    """Whether a clause that declines speaks of the whole request, in few words: "so that's a no from me"."""
    return len(clause) < _SHORT_CHARS and bool(_ALL.search(clause)) and not _PORTION.search(clause)


def only_disapproves(clause: str) -> bool:
    """Whether a clause that declines says that it does not approve, and not that it does not help."""
    return bool(_WEAK.search(clause.encode(errors="replace")))
