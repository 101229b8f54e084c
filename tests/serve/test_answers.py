"""What is served is what each run answers by itself, whoever else is in the batch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from lrft.api.opening.open_run import open_run
from lrft.build.scoring import subject
from lrft.core.adapted import adapters_off
from lrft.data.prompts import Asker
from lrft.evaluation.generate import generate
from lrft.evaluation.sampling import Sampling
from lrft.training.folder import find

TEXTS = ["2 + 2 =", "Why?", "Name three rivers of the north, please, and one sea.", "a", "7 - 5 = ?", "Go on"]
NEW = 6


@pytest.fixture(scope="session")
def alone(runs):
    """`alone(run, texts, adapter)`: the answers of `lrft generate`."""
    opened = {}

    def answers(
        name: str, texts: list[str], adapter: bool = True, sampling: Sampling | None = None
    ) -> list[str]:
        if name not in opened:
            recipe, text, adaptation = open_run(find(runs / name))
            opened[name] = subject(recipe, text, adaptation.model), Asker(text.renderer)
        target, asker = opened[name]
        ids = [asker.ids(asker.text(one)) for one in texts]
        if adapter:
            return [target.decode(new) for new in generate(target, ids, NEW, sampling=sampling)]
        with adapters_off(target.hf):
            return [target.decode(new) for new in generate(target, ids, NEW, sampling=sampling)]

    return answers


def asks(model: str, texts: list[str], **more) -> list[tuple[str, dict]]:
    common = {"model": model, "max_tokens": NEW, "temperature": 0, **more}
    return [
        ("/v1/chat/completions", {**common, "messages": [{"role": "user", "content": text}]})
        for text in texts
    ]


def said(answers) -> list[str]:
    assert {one.status_code for one in answers} == {200}, answers[0].text
    return [one.json()["choices"][0]["message"]["content"] for one in answers]


def test_many_adapters_in_one_batch_answer_as_each_does_alone(served, alone):
    names = ["small", "pissa", "ones", "plain"]
    with served(*names, "exported") as client:
        everyone = [client.base, *names, "exported"]
        together = [ask for turn in TEXTS for name in everyone for ask in asks(name, [turn])]
        answers = said(client.many(together))
        by_name = {name: answers[place :: len(everyone)] for place, name in enumerate(everyone)}
        assert client.batcher.counts.row_steps > 2 * client.batcher.counts.steps  # they were in one batch
    for name in names:
        assert by_name[name] == alone(name, TEXTS), name
    assert by_name[client.base] == alone("small", TEXTS, adapter=False)
    assert by_name["exported"] == alone("small", TEXTS)
    assert len({tuple(by_name[name]) for name in everyone}) > 3  # and not all the same


def test_a_batch_that_rows_join_and_leave_answers_as_each_does_alone(served, alone):
    from lrft.serve.server import Settings
    from lrft.serve.waiting import Limits

    settings = Settings(limits=Limits(rows=3, prompts=40))
    with served("small", "pissa", settings=settings) as client:
        mixed = [
            ask
            for place, text in enumerate(TEXTS * 3)
            for ask in asks(("small", "pissa", client.base)[place % 3], [text])
        ]
        for place, (_, ask) in enumerate(mixed):
            ask["max_tokens"] = NEW - place % 4
        answers = said(client.many(mixed))
    for place, (text, answer) in enumerate(zip(TEXTS * 3, answers, strict=True)):
        name, adapter = (("small", True), ("pissa", True), ("small", False))[place % 3]
        whole = alone(name, [text], adapter)[0]
        assert whole.startswith(answer) and (place % 4 or whole == answer)


def test_what_is_drawn_is_what_the_seed_says(served, alone):
    drawn = Sampling(1.5, 0.9, 0, 5)
    with served("small") as client:
        more = {"temperature": 1.5, "top_p": 0.9, "seed": 5}
        first, second = (said(client.many(asks("small", ["Why?"], **more))) for _ in range(2))
        other = said(client.many(asks("small", ["Why?"], **{**more, "seed": 6})))
    assert first == second == alone("small", ["Why?"], sampling=drawn)
    assert other != first


def test_a_stream_is_the_same_text_in_pieces(served):
    with served("small") as client:
        whole = said(client.many(asks("small", TEXTS[:1])))[0]
        more = {"stream": True, "stream_options": {"include_usage": True}}
        done = client.many(asks("small", TEXTS[:1], **more))[0]
    events = [line.removeprefix("data: ") for line in done.text.strip().split("\n\n")]
    assert events[-1] == "[DONE]"
    documents = [json.loads(event) for event in events[:-1]]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in documents[:-1]) == whole
    assert documents[0]["choices"][0]["delta"]["role"] == "assistant"
    assert documents[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    assert documents[-1]["usage"]["completion_tokens"] == NEW or whole
    assert len(documents) > 4


def test_a_text_that_stops_ends_the_answer_before_it(served):
    with served("small") as client:
        whole = client.chat("small", TEXTS[0], max_tokens=NEW)
        stop = whole[2:4]
        assert client.chat("small", TEXTS[0], max_tokens=NEW, stop=stop) == whole[: whole.index(stop)]


def test_completions_go_on_with_the_text_as_it_is(served, alone):
    with served("small") as client:
        tokenizer = client.choir.subject.tokenizer
        ids = tokenizer("Once upon")["input_ids"]
        ask = {"model": "small", "max_tokens": NEW, "temperature": 0}
        texts = [
            client.post("/v1/completions", {**ask, "prompt": prompt}).json()["choices"][0]["text"]
            for prompt in ("Once upon", ids, ["Once upon"], [ids])
        ]
    assert len(set(texts)) == 1 and texts[0] != ""


def test_an_earlier_turn_is_part_of_the_question(served, runs):
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2 ="}]},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "and 3?"},
    ]
    with served("small") as client:
        ask = {"model": "small", "messages": turns, "max_tokens": NEW, "temperature": 0}
        done = client.post("/v1/chat/completions", ask).json()
        plain = [*turns[:1], {"role": "user", "content": "2 + 2 ="}, *turns[2:]]
        tokenizer = client.choir.subject.tokenizer
        written = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    recipe, text, adaptation = open_run(find(runs / "small"))
    target = subject(recipe, text, adaptation.model)
    assert done["choices"][0]["message"]["content"] == target.decode(generate(target, [written], NEW)[0])
    assert done["usage"]["prompt_tokens"] == len(written)


def test_an_adapter_makes_room_for_another_and_comes_back(served, alone):
    from lrft.serve.server import Settings

    with served("small", "ones", "plain") as client:
        sizes = [source.pages(client.batcher.store.pages) for source in client.choir.sources.values()]
        page = client.batcher.store.pages.width * 4
    settings = replace(Settings(), adapter_bytes=max(sizes) * page)
    with served("small", "ones", "plain", settings=settings) as client:
        mixed = [ask for name in ("small", "ones", "plain") for ask in asks(name, TEXTS[:2])]
        answers = said(client.many([*mixed, *mixed]))
        store = client.batcher.store
        assert store.evictions >= 2 and len(store.resident) <= 2
    expected = [one for name in ("small", "ones", "plain") for one in alone(name, TEXTS[:2])]
    assert answers == [*expected, *expected]


def test_another_adapter_in_the_same_folder_is_not_answered_with(served, runs, tmp_path, capsys):
    """It is read when somebody asks for it, and who asks is not told where it lies."""
    from safetensors.torch import load, save_file

    folder = shutil.copytree(runs / "exported", tmp_path / "kept")
    for name in ("manifest.json", "fidelity.json"):  # which PEFT does not write
        (folder / name).unlink(missing_ok=True)
    with served("small", folder) as client:
        tensors = load((folder / "adapter_model.safetensors").read_bytes())
        save_file({name: -one for name, one in tensors.items()}, folder / "adapter_model.safetensors")
        for _ in range(2):
            done = client.post("/v1/chat/completions", asks("kept", TEXTS[:1])[0][1])
            assert done.status_code == 500 and str(tmp_path) not in done.text
            assert done.json()["error"]["message"].startswith("kept cannot be loaded")
        assert client.chat("small", TEXTS[0], max_tokens=2)
    assert capsys.readouterr().err.count("is another adapter than when the server began") == 1
