"""`lrft data augment --verify`: programs that are run, judged and corrected, and only right solutions become rows."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lrft.api.asking.correct import correct_rows
from lrft.commands.data import app
from lrft.data.corrected import Stage, find_answer, find_program, is_right, trajectory
from lrft.evaluation.answering import Given
from lrft.evaluation.confined import Limits, run_program
from lrft.recipe.load import load_recipe
from lrft.registry.errors import UsageError
from tests.each import each

ROWS = [
    {"prompt": "2 plus 3", "completion": " #### 5"},
    {"prompt": "2 times 3", "completion": " 6"},
    {"prompt": "7 minus 4", "completion": " 3"},
    {"prompt": "9 over 3", "completion": " 3"},
    {"prompt": "1 over 0", "completion": " 0"},
]
FENCED = "```python\nprint({})\n```"
# By a word of the question, and how many messages of the model are before: what it says.
SCRIPT = {
    ("plus", 0): "By adding:\n" + FENCED.format("2 + 3") + "\nand so on",
    ("plus", 1): "It is 5 as it should.\nAnswer: 5",
    ("times", 0): FENCED.format("2 + 3"),
    ("times", 1): "That adds.",
    ("times", 2): FENCED.format("2 * 3"),
    ("times", 3): "Now it multiplies.\nAnswer: 6.0",
    ("minus", 0): FENCED.format("7 + 4"),
    ("minus", 1): "Answer: 11",
    ("9 over", 0): "It is three.",
    ("1 over", 0): FENCED.format("1 / 0"),
    ("1 over", 1): "It failed.",
    ("1 over", 2): FENCED.format("1 / 0"),
    ("1 over", 3): "It failed again.",
}
LIMITS = Limits(5.0, 2**30)


@pytest.fixture
def recipe(tiny, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "ask.txt").write_text("Write a program: {prompt}\n")
    (tmp_path / "verify.txt").write_text("It printed [{output}]. Right?\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny()}, dtype: float32}}\n"
        f"data: {{train: {tmp_path}/rows.jsonl, format: prompt_completion}}\n"
        "train: {max_steps: 1, max_length: 64, device: cpu}\n"
        "adapter: {method: lora, rank: 2}\n"
    )
    return path


@pytest.fixture
def scripted(monkeypatch):
    """A model that says what the script has; every prompt that it was asked, as text."""
    asked = []

    def answer_all(subject, ids, max_new_tokens, sampling, done, where, features):
        for row in range(done, len(ids)):
            text = subject.tokenizer.decode(ids[row])
            asked.append(text)
            word = next(key for key, _ in SCRIPT if key in text.split("<|im_end|>")[0])
            said = SCRIPT[word, text.count("<|im_start|>assistant") - 1]
            yield [Given(row, subject.tokenizer.encode(said, add_special_tokens=False), True)]

    monkeypatch.setattr("lrft.api.asking.generate.answer_all", answer_all)
    return asked


def correct(recipe, out="more.jsonl", stages=2):
    folder = recipe.parent
    words = (folder / "ask.txt", folder / "verify.txt", folder / out, "completion")
    return correct_rows(load_recipe(recipe, []), *words, max_new_tokens=64, stages=stages)


def test_right_solutions_become_rows_with_all_their_stages_and_others_are_counted(recipe, scripted):
    found = correct(recipe)
    rows = [json.loads(line) for line in (recipe.parent / "more.jsonl").read_text().splitlines()]
    assert (found["rows"], len(rows)) == (2, 2)
    assert found["refused"] == {"with a wrong answer": 1, "without a program": 1, "without an answer": 1}
    program = "By adding:\n" + FENCED.format("2 + 3")  # and nothing after it
    assert rows[0]["completion"] == f" {program}\n\n```output\n5\n```\n\n{SCRIPT['plus', 1]}"
    assert rows[1]["completion"] == (
        f" {SCRIPT['times', 0]}\n\n```output\n5\n```\n\nThat adds.\n\n"
        f"{SCRIPT['times', 2]}\n\n```output\n6\n```\n\n{SCRIPT['times', 3]}"
    )
    assert [row["augmented"]["stages"] for row in rows] == [1, 2]
    assert any("It printed [5]. Right?" in one for one in scripted)
    assert any("It printed [ZeroDivisionError: division by zero]" in one for one in scripted)


def test_a_killed_command_goes_on_to_the_same_bytes_and_asks_only_what_is_missing(recipe, scripted):
    found = correct(recipe)
    files = {path.name: path.read_bytes() for path in recipe.parent.glob("more*")}
    asked = len(scripted)
    for part, lines in (("2-program", 1), ("2-printed", 0)):
        file = recipe.parent / f"more.{part}.answers.jsonl"
        kept = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(kept[:lines]) + b'{"row"')
    for gone in ("more.jsonl", "more.2-verified.answers.jsonl", "more.2-verified.answers.jsonl.about.json"):
        (recipe.parent / gone).unlink()
    again = correct(recipe)
    assert {path.name: path.read_bytes() for path in recipe.parent.glob("more*")} == files
    assert (again["rows"], again["refused"]) == (found["rows"], found["refused"])
    assert len(scripted) - asked == 3  # a program and two judgements
    assert again["before"] == asked - 3


def test_another_question_after_programs_is_refused_where_answers_are(recipe, scripted):
    correct(recipe)
    (recipe.parent / "verify.txt").write_text("Printed {output}?\n")
    with pytest.raises(UsageError, match="generated with prompts_sha256"):
        correct(recipe)


def test_nothing_is_run_without_leave(recipe, scripted):
    words = ["augment", str(recipe), "--prompt", str(recipe.parent / "ask.txt"), "--into", "completion"]
    words += ["--out", str(recipe.parent / "more.jsonl")]
    verify = ["--verify", str(recipe.parent / "verify.txt")]
    for more, said in (
        (verify, "add --allow-code"),
        (["--allow-code"], "no program is run without --verify"),
    ):
        error = CliRunner().invoke(app, [*words, *more]).exception
        assert isinstance(error, UsageError) and said in str(error)
    assert not scripted and not list(recipe.parent.glob("more*"))
    shown = CliRunner().invoke(
        app, [*words, *verify, "--allow-code", "--stages", "2"], catch_exceptions=False
    )
    assert "2 rows; no row of 1 with a wrong answer, 1 without a program, 1 without an answer" in shown.stdout


def test_a_question_without_the_output_is_refused(recipe, scripted):
    (recipe.parent / "verify.txt").write_text("Right?\n")
    with pytest.raises(UsageError, match="what the program printed; write it there"):
        correct(recipe)


@each(
    ("program", "ended", "printed", "error"),
    [
        ("print(6 * 7)", True, "42\n", ""),
        ("print(1)\nraise ValueError('no')", False, "1\n", "ValueError: no"),
        ("print(1)\nimport os\nos._exit(0)", False, "", ""),
        ("while True: pass", False, "", "no end within 1 seconds"),
        ("print('a' * 5000)", True, "a" * 2000, ""),
    ],
)
def test_what_a_program_printed_is_told_or_its_error(program, ended, printed, error):
    ran = run_program(program, Limits(1.0, 2**30) if "while" in program else LIMITS)
    assert (ran.ended, ran.printed, ran.error) == (ended, printed, error)


def test_the_last_conclusion_counts_and_numbers_are_compared_as_numbers():
    assert find_answer("Answer: 4\nno\n  Answer:  5 apples \n") == "5 apples"
    assert find_answer("The Answer: 4") is None
    assert is_right("5 apples", "2 + 3\n#### 5.0") and not is_right("4", "2 + 2\n#### 5")
    assert is_right("$1,005", "so it is 1005") and is_right(" yes", "yes") and not is_right("no", "yes")
    assert find_program("none") is None and find_program("```\n\n```") is None
    assert find_program("a\n```py\nx = 1\n```\nb") == ("a\n```py\nx = 1\n```", "x = 1")
    assert trajectory([Stage("p", "1", "v"), Stage("q", "2", "w")]).count("```output") == 2
