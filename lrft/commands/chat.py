"""`lrft chat`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import NewTokens, Run, Seed, Temperature, TopK, TopP
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result
from lrft.core import stop
from lrft.core.notes import is_terminal, say, silence
from lrft.files.append import append
from lrft.files.failure import WriteError
from lrft.registry.errors import DataError, UsageError

if TYPE_CHECKING:
    from lrft.api.asking.chat import Conversation

HELP = """/adapter on|off      answer with the adapter, or with the bare base model
/set NAME VALUE      temperature, top_p, top_k, seed or max_new_tokens; /set alone shows them
/reset               forget the conversation
/save FILE.jsonl     add the conversation to a file, as a row with `messages`
/quit                leave, as Ctrl-D does; Ctrl-C stops an answer
//text               asks a text that begins with a slash"""


def chat_command(
    run: Run = None,
    base: Annotated[bool, typer.Option("--base", help="Begin with the bare base model.")] = False,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    max_new_tokens: NewTokens = 512,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Talk to a run, a line a question; /help lists what can be changed. Lines may also be piped in.

    Example: lrft chat runs/quickstart --temperature 0.7
    """
    from lrft.api.asking.chat import open_conversation
    from lrft.evaluation.sampling import Sampling

    silence(quiet)
    sampling = Sampling(temperature, top_p, top_k, seed)
    with (
        stop.listening("the conversation is over; /save keeps one"),
        open_conversation(run, sampling, max_new_tokens, base, trust_remote_code) as talk,
    ):
        if not talk.remembers:
            say("the run was not trained on conversations: every line is asked alone, as its format asks")
        talk_until_the_end(talk)
        result({"messages": talk.messages, **_settings(talk)}, as_json, lambda _: None)  # it was told already


def talk_until_the_end(talk: Conversation) -> None:
    """Read lines and answer them. What is wrong with a line is told on a terminal, and elsewhere ends the command.

    Raises:
        UsageError, DataError: a piped line cannot be done or asked.
    """
    at_terminal = is_terminal(sys.stdin)
    for line in _typed() if at_terminal else _piped():
        if line == "/quit":
            return
        try:
            if line.startswith("/") and not line.startswith("//"):
                _command(talk, line)
            elif line.strip():
                _answer(talk, line.removeprefix("/") if line.startswith("//") else line)
        except (UsageError, DataError) as error:
            if not at_terminal:
                raise
            print(f"error: {error}", file=sys.stderr)


def _piped() -> Iterator[str]:
    while True:
        with stop.at_once():  # nobody polls while there is nothing to read
            try:
                line = sys.stdin.readline()
            except UnicodeDecodeError as error:
                raise UsageError(f"what is piped in is no {error.encoding} text; write it so") from None
        if not line:
            return
        yield line.rstrip()


def _typed() -> Iterator[str]:
    """Lines as they are typed, until the input ends or somebody presses Ctrl-C twice."""
    import readline  # noqa: F401 (arrow keys and earlier lines)

    warned = False
    while True:
        try:
            with stop.at_once():
                line = input("> ")
        except EOFError:
            print()
            return
        except stop.Stopped as stopped:
            print()
            if stopped.number != signal.SIGINT or warned:
                raise
            stop.forget()
            say("/quit, Ctrl-D or another Ctrl-C leaves")
            warned = True
            continue
        warned = False
        yield line


def _answer(talk: Conversation, text: str) -> None:
    def tell(piece: str) -> None:
        print(piece, end="", flush=True)

    with stop.held():  # the first Ctrl-C ends the answer, which is told and kept; the second raises
        reply = talk.say(text, tell, lambda: stop.asked() is not None)
    print(flush=True)
    if stop.asked() == signal.SIGINT and is_terminal(sys.stdin):
        stop.forget()
    stop.poll()
    if reply.ended != "stopped":
        say("[cut short]" if reply.ended == "cut" else f"[{reply.tokens} tokens, the most there may be]")


def _command(talk: Conversation, line: str) -> None:
    name, *words = line.split()
    if name == "/help":
        say(HELP)
    elif name == "/reset":
        talk.reset()
    elif name == "/set" and not words:
        say("\n".join(f"{key} {value}" for key, value in _settings(talk).items()))
    elif name == "/set" and len(words) == 2:
        talk.set(*words)
    elif name == "/adapter" and words in (["on"], ["off"]):
        talk.use_adapter(words == ["on"])
    elif name == "/save" and words:
        _save(talk, Path(line.partition(" ")[2].strip()))
    else:
        raise UsageError(f"{line}: no such command; /help lists them, and // begins a text with a slash")


def _save(talk: Conversation, path: Path) -> None:
    if path.suffix != ".jsonl" or "\0" in str(path):
        raise UsageError(f"/save {path}: a conversation is a line of JSON; give a name that ends in .jsonl")
    if not talk.messages:
        raise UsageError(f"/save {path}: nothing was said yet")
    line = json.dumps({"messages": talk.messages}, ensure_ascii=False) + "\n"
    try:
        append(path, line, f"/save {path}", synced=True)
    except WriteError as error:
        raise UsageError(str(error)) from None  # said, and the conversation goes on
    say(f"{path}: one conversation added")


def _settings(talk: Conversation) -> dict[str, str | int | float]:
    from dataclasses import asdict

    return {
        "model": "adapter" if talk.adapter else "base",
        **asdict(talk.sampling),
        "max_new_tokens": talk.max_new_tokens,
    }
