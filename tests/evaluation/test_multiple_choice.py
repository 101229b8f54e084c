"""Multiple choice: reading the rows, and which option wins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrft.data.sources import read_rows
from lrft.evaluation.loglik import continuation_logprobs
from lrft.evaluation.tasks.multiple_choice import parse_question
from lrft.registry.axes import TASKS
from lrft.registry.config import Source, parse_choice
from lrft.registry.errors import DataError


def row(
    question: str, options: str, labels: str, answer: str, output: str = "the correct answer is {}"
) -> dict:
    instruction = f"{question}\n\n{options}Answer format: {labels}"
    return {"instruction": instruction, "input": "", "output": output.format(answer), "answer": answer}


LETTERS = row(
    "Please choose the correct answer to the question: What shines by day?",
    "Answer1: the sun Answer2: a moon: full Answer3: a star\n\n",
    "answer1/answer2/answer3",
    "answer1",
)
SOLUTIONS = row(
    "Please choose the correct solution to the question: open a tin",
    "Solution1: use an opener \n\nSolution2: shout,  loudly\n\n",
    "solution1/solution2",
    "solution2",
)
BLANK = row(
    "Please choose the correct answer to fill in the blank: Ann thanked Bea because _ was helped.",
    "Option1: Ann Option2: Bea ",
    "option1/option2",
    "option1",
)
TRUTH = row(
    "Please answer the following question with true or false, question: is ice cold?",
    "",
    "true/false",
    "true",
)
ENDINGS = row("Complete: He sat", "Ending1: down. Ending2: up.\n\n", "ending1/ending2", "ending2")
ROWS = [LETTERS, SOLUTIONS, BLANK, TRUTH, ENDINGS]
LONGEST = {"ARC-Easy": 5, "boolq": 2, "openbookqa": 4, "piqa": 2, "social_i_qa": 3, "winogrande": 2}


@pytest.mark.parametrize(
    ("made", "options", "gold"),
    [
        (LETTERS, ("the sun", "a moon: full", "a star"), 0),
        (SOLUTIONS, ("use an opener", "shout,  loudly"), 1),
        (BLANK, ("Ann", "Bea"), 0),
        (TRUTH, ("true", "false"), 0),
        (ENDINGS, ("down.", "up."), 1),
    ],
)
def test_options_are_read_from_every_layout(made, options, gold):
    question = parse_question(made)
    assert (question.options, question.gold) == (options, gold)
    assert question.stem == made["instruction"].partition("\n\n")[0]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({**LETTERS, "instruction": "What shines?"}, "does not end in `Answer format"),
        ({**LETTERS, "answer": "answer4"}, "'answer4' must be one of answer1, answer2, answer3"),
        ({**LETTERS, "output": "the sun"}, "'answer1' must be one of .* and stand in the output"),
        ({**LETTERS, "answer": None}, "answer is missing"),
        ({"instruction": "x"}, "output is missing"),
        (row("q", "Answer1: a ", "answer1/answer2", "answer1"), "option 'answer2' has no words"),
        (row("q", "Answer1: Answer2: b ", "answer1/answer2", "answer1"), "option 'answer1' has no words"),
        (row("q", "Answer2: b Answer1: a ", "answer1/answer2", "answer1"), "option 'answer2' has no words"),
    ],
)
def test_rows_that_cannot_be_read_are_refused_by_line(make_subject, made, message):
    subject = make_subject(rows=[LETTERS, made], format="instruction")
    with pytest.raises(DataError, match=rf"^made\.jsonl:2: .*{message}"):
        TASKS.get("multiple_choice")(parse_choice(TASKS, "multiple_choice")).run(subject, None)


@pytest.mark.parametrize("name", LONGEST)
def test_every_row_of_the_commonsense_sets_is_read(name):
    folder = os.environ.get("LRFT_DATA")
    if folder is None:
        pytest.skip("set LRFT_DATA to a folder that holds commonsense/*_test.json")
    rows = read_rows(Source(source=str(Path(folder) / "commonsense" / f"{name}_test.json")), "eval")
    questions = [parse_question(made) for made in rows]
    assert len(questions) >= 500
    assert max(len(question.options) for question in questions) == LONGEST[name]
    for made, question in zip(rows, questions, strict=True):
        assert question.labels[question.gold] == made["answer"]
        assert made["output"] == f"the correct answer is {made['answer']}"
        shown = [f"{a.capitalize()}: {b}" for a, b in zip(question.labels, question.options, strict=True)]
        rest = " ".join(made["instruction"].split()).removesuffix(
            "Answer format: " + "/".join(question.labels)
        )
        body = question.stem if name == "boolq" else " ".join([question.stem, *shown])
        assert " ".join(body.split()) == rest.strip(), "nothing of the row may be lost"


def scored(subject, limit=None):
    return TASKS.get("multiple_choice")(parse_choice(TASKS, "multiple_choice")).run(subject, limit)


@pytest.mark.parametrize("render", ["plain", "chat"])
def test_the_winner_is_the_likeliest_in_each_reading(make_subject, render):
    subject = make_subject(rows=ROWS, format={"method": "instruction", "render": render})
    found = scored(subject)
    counts = {"acc_label": 0, "acc": 0, "acc_norm": 0, "acc_norm_token": 0}
    for made in ROWS:
        question = parse_question(made)

        def best(values, gold=question.gold):
            return max(range(len(values)), key=values.__getitem__) == gold

        labels = [{**made, "output": f"the correct answer is {label}"} for label in question.labels]
        words = [{**made, "instruction": question.stem, "output": option} for option in question.options]
        of_labels, of_words = (
            [likelihood(subject, candidate) for candidate in group] for group in (labels, words)
        )
        counts["acc_label"] += best([total for total, _ in of_labels])
        counts["acc"] += best([total for total, _ in of_words])
        counts["acc_norm"] += best(
            [t / len(o.encode()) for (t, _), o in zip(of_words, question.options, strict=True)]
        )
        counts["acc_norm_token"] += best([total / tokens for total, tokens in of_words])
    assert {name: found.metrics[name] for name in counts} == {name: n / 5 for name, n in counts.items()}
    assert all(f"{name}_stderr" in found.metrics for name in counts)
    assert found.n == 5


def likelihood(subject, candidate) -> tuple[float, int]:
    """The answer's tokens are those of the text alone, the prompt is what generation would start from."""
    question = subject.renderer.question(candidate)
    prompt, answer = question.prompt, question.answer
    assert subject.tokenizer.decode(answer) == candidate["output"]
    assert prompt == subject.renderer.prompt_ids(candidate)
    return continuation_logprobs(subject, [prompt], [answer])[0]


def test_a_model_that_knows_the_answers_scores_one(make_subject, monkeypatch):
    subject = make_subject(rows=ROWS, format="instruction")
    right = {made["output"] for made in ROWS} | {"the sun", "shout,  loudly", "Ann", "true", "up."}

    def knows(asked, prompts, continuations, *rest):
        texts = [subject.tokenizer.decode(tokens) for tokens in continuations]
        # BLANK's and TRUTH's labels are wrong elsewhere, so a sentence counts only after its own question.
        asked_for = [subject.tokenizer.decode(prompt) for prompt in prompts]
        good = [
            any(text in (m["output"], *_gold_words(m)) and parse_question(m).stem in q for m in ROWS)
            for text, q in zip(texts, asked_for, strict=True)
        ]
        assert any(text in right for text in texts)
        return [
            (-1.0 if hit else -100.0, len(tokens)) for hit, tokens in zip(good, continuations, strict=True)
        ]

    monkeypatch.setattr(f"{parse_question.__module__}.continuation_logprobs", knows)
    found = scored(subject)
    assert [found.metrics[name] for name in ("acc_label", "acc", "acc_norm", "acc_norm_token")] == [1.0] * 4
    assert [sample["output"] for sample in found.samples] == [made["answer"] for made in ROWS]
    assert all(sample["correct"] for sample in found.samples)


def _gold_words(made: dict) -> list[str]:
    question = parse_question(made)
    return [question.options[question.gold]]


def test_options_are_hidden_from_the_prompt_that_scores_their_words(make_subject, monkeypatch):
    subject = make_subject(rows=[LETTERS], format="instruction")
    prompts: list[str] = []

    def listen(asked, given, continuations, *rest):
        prompts.extend(subject.tokenizer.decode(prompt) for prompt in given)
        return [(-1.0, len(tokens)) for tokens in continuations]

    monkeypatch.setattr(f"{parse_question.__module__}.continuation_logprobs", listen)
    scored(subject)
    assert all("Answer2: a moon: full" in prompt for prompt in prompts[:3])
    assert all("What shines by day?" in p and "moon" not in p and "Answer" not in p for p in prompts[3:])
