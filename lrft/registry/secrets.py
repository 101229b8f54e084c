"""What of a text is nobody's business, and the mask in its place.

Secrets come in by the environment alone. Every error, note and traceback is masked where it is made or printed, and a
recipe that holds one is refused, so that nothing that is written of a run has any.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

MASK = "***"
SHORTEST, SURE = 8, 12  # characters of a value that is masked, and of one that a recipe must not hold
SECRET_NAME = re.compile(
    r"(?:.*_)?(?:token|password|passwd|passphrase|secret|api_?key|access_?key|private_?key|credentials?|auth|pat)(?:_.*)?",
    re.IGNORECASE,
)
# One slash is what is left of two where a URL was taken for a path. Every text is read once: it may be a stranger's.
URL = r"(?<![\w+.-])[A-Za-z][\w+.-]{0,30}:/{1,2}"
WORD = re.compile(r"[^\s'\"<>]+")  # what a URL with its query ends in
USER = re.compile(rf"({URL})[^\s/?#'\"<>]*@")
SIGNED = re.compile(
    r"(?:^|[?&;])(?:\w{0,30}_)?(?:token|key|apikey|secret|password|sig|signature|auth)=", re.IGNORECASE
)
LOGIN = re.compile(rf"{URL}[^\s/?#:]*:([^\s/?#]*)@")  # what a variable holds, such as a proxy's; its password
# As the hub, Weights & Biases' hosts, GitHub, GitLab, OpenAI, AWS and Slack write theirs.
TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|sk-(?:proj-)?[A-Za-z0-9]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{20,})"
)


def masked(text: str) -> str:
    """The text without secrets: a variable's name for its value, no user and no query in a URL, no token."""
    if ":/" in text:
        text = WORD.sub(lambda word: _without_query(word[0]), USER.sub(rf"\1{MASK}@", text))
    for name, value in _held():
        if value in text:
            text = text.replace(value, f"${name}")
    return TOKEN.sub(MASK, text)


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds, in words that do not tell it; None where it holds none."""
    if ":/" in text and (
        USER.search(text) or any(SIGNED.search(_query(word)) for word in WORD.findall(text))
    ):
        return "a URL with a password or a token"
    if TOKEN.search(text):
        return "a token"
    for name, value in _held():
        if len(value) >= SURE and not value.isalpha() and not value.isdigit() and value in text:
            return f"the value of ${name}"
    return None


def _query(word: str) -> str:
    """The query of a URL, which a word may end in; empty where there is none."""
    return word[word.find(":/") :].partition("?")[2].partition("#")[0] if ":/" in word else ""


def _without_query(word: str) -> str:
    query = _query(word)
    return word.replace(f"?{query}", f"?{MASK}", 1) if query else word


def _held() -> Iterator[tuple[str, str]]:
    """(variable, value) of every secret of the environment, also as it looks in quotes; the longest first."""
    found = {}
    for name, value in os.environ.items():
        if SECRET_NAME.fullmatch(name):
            found[value] = name
        elif login := LOGIN.match(value):
            found[login[1]] = name
    for value in sorted(found, key=len, reverse=True):
        if len(value) >= SHORTEST and "\n" not in value:
            for written in dict.fromkeys((value, repr(value)[1:-1], json.dumps(value)[1:-1])):
                yield found[value], written
