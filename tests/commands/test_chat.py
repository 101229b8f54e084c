"""`lrft chat` with lines piped in, on a run of the tiny model."""

from __future__ import annotations

import io
import json
import os
import signal
import sys

import pytest
import torch

from lrft.api.asking.chat import Reply, open_conversation
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.scoring import subject
from lrft.core.adapted import adapters_off
from lrft.evaluation.generate import generate
from lrft.evaluation.sampling import Sampling
from lrft.evaluation.stream import Pieces
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, UsageError
from lrft.training.folder import find
from tests.commands.conftest import DATA, RECIPE

PLAIN = "data.format={method: prompt_completion, render: plain}"


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(model=tiny(), data=DATA))
    for name, more in (("chat", []), ("plain", [PLAIN])):
        train(load_recipe(path, ["optimizer.lr=0.3", *more]), folder / name, resume=False)
    return folder


@pytest.fixture
def talk(call, runs, monkeypatch):
    def say(*lines: str, run: str = "chat", options: tuple[str, ...] = ()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return call("chat", runs / run, "--max-new-tokens", "6", *options)

    return say


@pytest.fixture(scope="module")
def expected(runs):
    """`expected(messages, ...)`: the greedy answer by the run's own renderer and the batched generation."""
    recipe, text, adaptation = open_run(find(runs / "chat"))
    target = subject(recipe, text, adaptation.model)

    def answer(*said: str, adapter: bool = True, **settings) -> str:
        turns = [{"role": ("user", "assistant")[k % 2], "content": content} for k, content in enumerate(said)]
        written = text.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = text.tokenizer(written, add_special_tokens=False)["input_ids"]
        if adapter:
            return target.decode(generate(target, [ids], 6, **settings)[0])
        with adapters_off(adaptation.model):
            return target.decode(generate(target, [ids], 6, **settings)[0])

    return answer


def test_a_second_question_is_asked_with_the_first_and_its_answer(talk, expected):
    done = talk("2 + 2 =", "and 3?")
    assert done.code == 0, done.err
    first = expected("2 + 2 =")
    assert done.out == f"{first}\n{expected('2 + 2 =', first, 'and 3?')}\n"


def test_resetting_forgets_and_the_adapter_can_be_put_off_and_on(talk, expected):
    done = talk("Why?", "/reset", "/adapter off", "Why?", "/reset", "/adapter on", "Why?")
    on, off = expected("Why?"), expected("Why?", adapter=False)
    assert on != off and done.out == f"{on}\n{off}\n{on}\n"
    assert talk("Why?", options=("--base",)).out == f"{off}\n"


def test_what_is_drawn_depends_on_the_seed_and_the_number_of_the_answer(talk, expected):
    warm = Sampling(1.5, seed=4)
    said = talk("/set temperature 1.5", "/set seed 4", "Why?").out
    assert said == talk("Why?", options=("--temperature", "1.5", "--seed", "4")).out
    assert said == expected("Why?", sampling=warm) + "\n"
    assert said != talk("/set temperature 1.5", "/set seed 5", "Why?").out
    found = talk("Why?", "Why?", options=("--temperature", "1.5", "--seed", "4", "--json")).document
    first, second = (turn["content"] for turn in found["messages"][1::2])
    assert second == expected("Why?", first, "Why?", sampling=warm, first=1)


def test_the_conversation_is_saved_as_a_row_to_train_on(talk, tmp_path):
    done = talk("Hi", "/save kept.jsonl", "//adapter off", "/save kept.jsonl", options=("--json",))
    rows = [json.loads(line)["messages"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [len(row) for row in rows] == [2, 4]
    assert rows[1] == done.document["messages"]
    assert rows[1][2] == {"role": "user", "content": "/adapter off"}
    assert done.document["model"] == "adapter" and done.document["max_new_tokens"] == 6


def test_a_run_without_conversations_is_asked_every_line_alone(talk):
    done = talk("2 + 2 =", "2 + 2 =", run="plain")
    assert "every line is asked alone" in done.err
    first, second = done.out.splitlines()
    assert first == second


def test_help_and_settings_are_notes_and_quitting_ends(talk):
    done = talk("/help", "/set", "/quit", "never asked")
    assert (done.code, done.out) == (0, "")
    assert "/adapter on|off" in done.err and "temperature 0.0" in done.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sing", "/sing: no such command; /help lists them"),
        ("/adapter", "/adapter: no such command"),
        ("/set colour 3", "/set colour: settings are temperature, top_p"),
        ("/set top_k many", "/set top_k many: give a number"),
        ("/set max_new_tokens 0", "at least one token"),
        ("/set top_p 0.5", "nothing is drawn at temperature 0"),
        ("/save kept.txt", "a name that ends in .jsonl"),
        ("/save kept.jsonl", "nothing was said yet"),
        ("/save a\0b.jsonl", "a name that ends in .jsonl"),
    ],
)
def test_a_piped_line_that_cannot_be_done_ends_the_command(talk, line, message):
    done = talk(line, "Hi")
    assert done.code == 2 and done.out == ""
    assert done.err.splitlines()[-1].startswith("error: ") and message in done.err


def test_bytes_that_are_no_text_end_the_command(call, runs, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    done = call("chat", runs / "chat")
    assert done.code == 2 and "error: what is piped in is no utf-8 text; write it so" in done.err


@pytest.fixture
def conversation(runs):
    with open_conversation(runs / "chat", max_new_tokens=6) as opened:
        yield opened


def test_the_pieces_are_the_answer_and_an_answer_that_is_cut_stays_in_the_conversation(conversation):
    pieces: list[str] = []
    whole = conversation.say("Why?", pieces.append, lambda: False)
    assert "".join(pieces) == whole.text and len(pieces) > 1 and whole.ended == "limit"
    conversation.reset()
    asked: list[int] = []

    def third() -> bool:
        asked.append(1)
        return len(asked) == 3

    cut = conversation.say("Why?", pieces.append, third)
    assert (cut.tokens, cut.ended) == (3, "cut")
    assert whole.text.startswith(cut.text)
    assert conversation.messages[-1] == {"role": "assistant", "content": cut.text}


def test_an_answer_is_kept_as_the_template_writes_it(conversation, monkeypatch):
    tokenizer = conversation.subject.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    asked = []

    def said(target, ids, *rest):
        asked.append(target.tokenizer.decode(ids))
        return tokenizer(" so" if len(asked) == 1 else "no")["input_ids"], True

    monkeypatch.setattr("lrft.api.asking.chat.stream", said)
    replies = [
        conversation.say(text, print, lambda: False).text for text in ("how?", "and now?", "and then?")
    ]
    assert replies == [" so", "no", "no"]
    stop = tokenizer.eos_token
    # What was generated in no such form, as without the space, stays what it is.
    assert asked[2] == (
        f"user: how?{stop}assistant: so{stop}user: and now?{stop}assistant: no{stop}user: and then?{stop}assistant:"
    )


def test_no_piece_holds_half_a_character(conversation):
    text = "héllo 🙂, 日本"
    tokens = conversation.subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    told: list[str] = []
    pieces = Pieces(conversation.subject, told.append)
    for value in ([[1, 2]], *([token] for token in tokens)):
        pieces.put(torch.tensor(value))
    pieces.end()
    assert "".join(told) == conversation.subject.decode(tokens) and len(told) > 3
    assert not any("\ufffd" in piece for piece in told)


def test_a_conversation_that_is_too_long_is_refused_and_stays_as_it_was(conversation, monkeypatch):
    conversation.say("Why?", lambda piece: None, lambda: False)
    before = list(conversation.messages)
    monkeypatch.setattr(conversation.subject.hf.config, "max_position_embeddings", 30)
    with pytest.raises(DataError, match=r"has \d+ tokens and the model 30 positions; /reset"):
        conversation.say("and " * 40, lambda piece: None, lambda: False)
    assert conversation.messages == before


def test_a_ctrl_c_stops_an_answer_and_one_at_the_prompt_after_another_the_program(call, runs, monkeypatch):
    """At a terminal: one in an answer, which is told and kept; then two in a row at the prompt."""
    typed = iter(["Hi", signal.SIGINT, "Why?", "/set", signal.SIGINT, signal.SIGINT])

    def prompt(text):
        given = next(typed)
        if isinstance(given, str):
            return given
        os.kill(os.getpid(), given)
        raise AssertionError("the signal was not seen")

    def say(self, text, tell, should_stop):
        assert not should_stop()
        if text == "Why?":
            os.kill(os.getpid(), signal.SIGINT)
        return Reply("so", 1, "cut" if should_stop() else "stopped")

    monkeypatch.setattr("builtins.input", prompt)
    monkeypatch.setattr("lrft.api.asking.chat.Conversation.say", say)
    monkeypatch.setattr("lrft.commands.chat.is_terminal", lambda stream: True)
    done = call("chat", runs / "chat")
    assert done.code == 130 and next(typed, None) is None
    assert done.err.count("[cut short]") == 1
    assert done.err.count("another Ctrl-C leaves") == 2
    assert done.err.endswith("error: interrupted (SIGINT): the conversation is over; /save keeps one\n")


def test_a_number_of_tokens_below_one_is_refused(call, runs):
    done = call("chat", runs / "chat", "--max-new-tokens", "0")
    assert done.code == 2 and "at least one token" in done.err


def test_settings_are_kept_where_a_new_one_is_refused(conversation):
    conversation.set("temperature", "0.7")
    conversation.set("top_p", "0.9")
    with pytest.raises(UsageError, match=r"top_p 0\.9: nothing is drawn"):
        conversation.set("temperature", "0")
    assert conversation.sampling == Sampling(0.7, 0.9)
