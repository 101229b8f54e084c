r"""Answers in `\boxed{...}`: where they stand, and how they are written alike."""

from __future__ import annotations

import re

BOXED = re.compile(r"\\f?box(?:ed)?\s*(?={)")
BARE = re.compile(r"\\boxed (\S+)")  # MATH has a few without braces
WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
UNITS = re.compile(r"\\(?:text|mbox)\s*\{[^}]*\}\s*$")  # what is written after a number
NAMED = re.compile(r"^\w{1,2}\s*=")  # x = 5 asks for 5
SPELT = {
    "\\!": "",
    "\\,": "",
    "\\ ": "",
    "\\left": "",
    "\\right": "",
    "tfrac": "frac",
    "dfrac": "frac",
    "^{\\circ}": "",
    "^\\circ": "",
    "\\$": "",
    "\\%": "",
    "%": "",
    "\n": "",
}


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` (or `\fbox{...}`) holds, its braces balanced; None without one."""
    found = None
    for mark in BOXED.finditer(text):
        inside = _braced(text, mark.end())
        found = inside if inside is not None else found
    if found is None and (bare := BARE.findall(text)):
        return str(bare[-1]).rstrip("$.")
    return found


def normalised(answer: str) -> str:
    """The answer as everybody might write it: two that become the same text are the same answer."""
    text = answer.strip().rstrip(".")
    for written, meant in SPELT.items():
        text = text.replace(written, meant)
    whole = WORDS.fullmatch(text.strip())
    text = NAMED.sub("", whole[1] if whole else UNITS.sub("", text))
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = text.replace(" ", "")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = _fractions(text)
    text = re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    if re.fullmatch(r"-?\d+\.\d+", text):
        text = text.rstrip("0").rstrip(".")
    return "\\frac{1}{2}" if text == "0.5" else text


def _fractions(text: str) -> str:
    r"""`\frac12` and `\frac1{72}` with the braces that they leave out."""
    text = re.sub(r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\w)\s*(?={)", r"\\frac{\1}", text)
    return re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\w)", r"\1{\2}", text)


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and the one that closes it; None where nothing does."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1 : place]
    return None
