"""A chat template as what it writes around each kind of message, found by rendering it; and as Go's template."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrft.export import go_template
from lrft.registry.errors import DataError

Message = dict[str, str]
Render = Callable[[Sequence[Message], bool], str]
"""(messages, whether the generation prompt follows) -> text."""

SYSTEM, USER, ANSWER, NEXT = "Sprobe7", "Uprobe7", "Aprobe7", "Nprobe7"
Around = tuple[str, str]


class Untranslated(ValueError):
    """The template does more than write text around messages; says what."""


@dataclass(frozen=True)
class Turns:
    """What a template writes.

    Attributes:
        lead: before everything.
        default: after that, where no message has the role system.
        around: role -> what stands before and after a message.
        prompt: what an answer is asked with.
    """

    lead: str
    default: str
    around: dict[str, Around]
    prompt: str

    def as_go(self) -> str:
        """The same as a template of Ollama."""
        default = (
            f"{{{{ if not .System }}}}{go_template.quote(self.default)}{{{{ end }}}}" if self.default else ""
        )
        cases = [
            f"if eq .Role {json.dumps(role)} }}}}" + "{{ .Content }}".join(map(go_template.quote, around))
            for role, around in self.around.items()
        ]
        each = "{{ " + "{{ else ".join(cases) + "{{ end }}"
        lead, prompt = go_template.quote(self.lead), go_template.quote(self.prompt)
        return f"{lead}{default}{{{{ range .Messages }}}}{each}{{{{ end }}}}{prompt}"


def learn(render: Render) -> Turns:
    """What the template writes around messages.

    Raises:
        Untranslated: it is more than that; says where.
    """
    user, answer, following = _said("user", USER), _said("assistant", ANSWER), _said("user", NEXT)
    alone, asked = render([user], False), render([user], True)
    prompt = _without(asked, alone, "the text of a conversation changes when an answer is asked for")
    opening, after_user = _cut(alone, USER)
    dialogue = render([user, answer, following], False)
    _, rest = _cut(dialogue, USER)
    between, rest = _cut(rest, ANSWER)
    turn, last = _cut(rest, NEXT)
    before_answer = _without(between, after_user, "a message is written differently when an answer follows")
    _, after_answer = _cut(render([user, answer], False), ANSWER)
    before_user = _without(
        turn, after_answer, "an answer is written differently when the conversation goes on"
    )
    if last != after_user or not opening.endswith(before_user):
        raise Untranslated("the first message is written differently from later ones")
    opening = opening[: len(opening) - len(before_user)] if before_user else opening
    around = {"user": (before_user, after_user), "assistant": (before_answer, after_answer)}
    try:
        whole = render([_said("system", SYSTEM), user], False)
    except DataError:
        return Turns(opening, "", around, prompt)
    lead, default, system = _system(whole, opening, before_user)
    return Turns(lead, default, {"system": system, **around}, prompt)


def _system(whole: str, opening: str, before_user: str) -> tuple[str, str, Around]:
    """What comes first, what stands where no system message is, and what is around one."""
    start, rest = _cut(whole, SYSTEM)
    middle, _ = _cut(rest, USER)
    if before_user and not middle.endswith(before_user):
        raise Untranslated("a system message becomes a part of what the user says")
    after = middle[: len(middle) - len(before_user)] if before_user else middle
    if start.startswith(opening):
        return opening, "", (start.removeprefix(opening), after)
    # Both may begin alike (a bos token): that is then written in either branch.
    return "", opening, (start, after)


def prove(template: str, render: Render, has_system: bool) -> list[str]:
    """Render both on conversations of all shapes; returns what has to be told of messages that differ all the same.

    Raises:
        Untranslated: they differ where nothing could be told.
    """
    plain = 'Say "yes", or {{ no }} — naïvely.\n\nThen {% stop %} <b>now</b>.'
    for messages in _conversations(plain, "42: it is.\n\n- so", has_system):
        if go_template.render(template, messages) != render(messages, True):
            raise Untranslated("a conversation of several turns is not what it writes around single messages")
    thoughts = "<think>\nWell.\n</think>\n\nYes."
    for messages in _conversations("Really?", thoughts, has_system):
        if go_template.render(template, messages) != render(messages, True):
            raise Untranslated("it takes thoughts out of earlier answers")
    for answered in ("\n Answered.  ", " Answered."):
        for messages in _conversations("  Spaced. \n", answered, has_system):
            if go_template.render(template, messages) != render(messages, True):
                return [
                    "the chat template takes white space off the ends of messages and a Modelfile cannot: send none"
                ]
    return []


def _conversations(said: str, answered: str, has_system: bool) -> list[list[Message]]:
    user, answer = _said("user", said), _said("assistant", answered)
    found = [[user], [user, answer, user], [user, answer, user, answer, user]]
    system = _said("system", said)
    return [*found, *([system, *messages] for messages in found)] if has_system else found


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _cut(text: str, probe: str) -> tuple[str, str]:
    """The text before a probe and after it, which stands there once."""
    if text.count(probe) != 1:
        raise Untranslated("a message is not written once, as it is")
    before, _, after = text.partition(probe)
    return before, after


def _without(text: str, beginning: str, complaint: str) -> str:
    if not text.startswith(beginning):
        raise Untranslated(complaint)
    return text.removeprefix(beginning)
