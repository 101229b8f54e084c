"""Programs that a model wrote: put together, never run without leave, and confined where they are."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from lrft.data.seam import token_ids
from lrft.data.sources import read_rows
from lrft.evaluation.confined import Limits, cuts_network, passes
from lrft.evaluation.tasks import humaneval
from lrft.evaluation.tasks.humaneval import Problem, defines, program, read_problem
from lrft.registry.axes import TASKS
from lrft.registry.config import Source, parse_choice
from lrft.registry.errors import DataError

PROMPT = 'import math\n\n\ndef twice(x):\n    """Two x."""\n'
ROW = {
    "prompt": PROMPT,
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(-1) == -2\n",
}
TWICE = Problem(**ROW)
LIMITS = Limits(10.0, 2**30)
OUTPUTS = [
    "    return 2 * x\n\nprint(twice(1) / 0)",  # right, cut before print
    "```python\ndef twice(x):\n    return x + x\n```\nIt adds.",  # right, fenced
    "    return x * x",  # wrong
    "    return (",  # no Python
    "    raise SystemExit(0)",  # ends before its tests, without an error
]


def test_a_program_is_put_together_from_every_kind_of_output():
    assert program(TWICE, OUTPUTS[0]) == PROMPT + "    return 2 * x\n"
    assert program(TWICE, OUTPUTS[1]) == "import math\n\n\ndef twice(x):\n    return x + x"
    own = "def half(x): ...\n\ndef twice(x):\n    return 2 * x"
    assert program(TWICE, own) == f"import math\n\n\n{own}"
    assert program(TWICE, "```\nprint(1)\n```\n```py\ndef twice(x): return 1") == (
        "import math\n\n\ndef twice(x): return 1"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def twice(x): return 1", True),
        ("async def twice(x): return 1", True),
        ("def twice2(x): return 1", False),
        ("class A:\n    def twice(x): return 1", False),
        ("def twice(x) return 1", False),
        ("def twice(x): return '\0'", False),
    ],
)
def test_a_function_is_found_without_running_anything(text, found):
    assert defines(text, "twice") is found


@pytest.fixture
def scored(make_subject, monkeypatch):
    def score(rows=None, **settings):
        subject = make_subject(rows=rows or [ROW] * len(OUTPUTS))
        asked = []

        def spoken(asked_of, prompts, most, **named):
            asked.extend(subject.tokenizer.decode(prompt) for prompt in prompts)
            return [token_ids(subject.tokenizer, text) for text in OUTPUTS]

        monkeypatch.setattr(humaneval, "generate", spoken)
        config = parse_choice(TASKS, {"method": "humaneval", **settings})
        return TASKS.get("humaneval")(config).run(subject, None), asked

    return score


def test_nothing_is_run_without_leave(scored, monkeypatch):
    monkeypatch.setattr(humaneval, "passes", lambda *given: pytest.fail("a program was run"))
    found, asked = scored()
    assert asked[0].endswith(PROMPT)
    assert found.metrics["parses"] == 0.8 and "pass_at_1" not in found.metrics
    assert found.version == "humaneval-1"
    assert found.settings["allow_code"] is False and "network" not in found.settings


def test_programs_that_come_to_the_end_of_their_tests_pass(scored):
    found, _ = scored(allow_code=True)
    assert [sample["correct"] for sample in found.samples] == [True, True, False, False, False]
    assert found.metrics["pass_at_1"] == 0.4 and found.metrics["parses"] == 0.8
    assert found.settings["network"] == ("none" if cuts_network() else "open")


BREAKING = {
    "an endless loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "memory": "x = bytearray(2**31)",
    "a large file": "open('x', 'wb').write(bytes(2**22))",
    "many files": "kept = [open(f'{i}', 'w') for i in range(100)]",
    "an error": "1 / 0",
    "an early exit": "import os; os._exit(0)",
    "the word of another": "import sys; print('0' * 32); sys.exit(0)",
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_program_that_takes_too_much_or_breaks_off_does_not_pass(name):
    began = time.monotonic()
    limits = Limits(1.5, 2**29) if name in ("an endless loop", "sleep") else Limits(20.0, 2**29)
    assert not passes(BREAKING[name], limits)
    assert time.monotonic() - began < 20


def test_a_program_runs_in_an_empty_folder_with_a_bare_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    program = (
        "import os, sys\nassert os.listdir('.') == [] and 'SECRET_TOKEN' not in os.environ\n"
        "assert os.getcwd() == os.environ['HOME'] and len(sys.argv) == 1\nopen('x', 'w').write('fits')\n"
    )
    assert passes(program, LIMITS)


def test_a_program_reaches_no_network():
    if not cuts_network():
        pytest.skip("this system gives no namespaces to users")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        assert not passes(program, LIMITS)


def test_nothing_outlives_a_program(tmp_path):
    late = tmp_path / "late"
    inner = f"import time; time.sleep(1); open({str(late)!r}, 'w')"
    program = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True)\n"
    )
    assert passes(program, LIMITS)
    if not cuts_network():
        pytest.skip("without namespaces a program may leave a process behind")
    time.sleep(2)
    assert not late.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": None}, "test is missing"),
        ({"entry_point": "a b"}, "'a b' is no name"),
        ({"prompt": ""}, "prompt is missing"),
    ],
)
def test_a_row_without_what_is_read_is_refused_by_line(scored, change, message):
    with pytest.raises(DataError, match=rf"^made\.jsonl:2: .*{message}"):
        scored([ROW, {**ROW, **change}])


def test_the_solutions_of_the_data_set_are_its_programs():
    folder = os.environ.get("LRFT_DATA")
    if folder is None:
        pytest.skip("set LRFT_DATA to a folder that holds code/HumanEval.jsonl.gz")
    rows = read_rows(Source(source=str(Path(folder) / "code" / "HumanEval.jsonl.gz")), "eval")
    assert len(rows) == 164
    for row in rows:
        problem = read_problem(row)
        whole = program(problem, row["canonical_solution"])
        assert defines(whole, problem.entry_point)
        assert program(problem, f"```python\n{problem.prompt}{row['canonical_solution']}```").endswith(
            row["canonical_solution"].rstrip("\n")
        ) or row["canonical_solution"] in program(problem, problem.prompt + row["canonical_solution"])
    right = [read_problem(row) for row in (rows[0], rows[50])]
    for problem, row in zip(right, (rows[0], rows[50]), strict=True):
        tests = (
            f"{program(problem, row['canonical_solution'])}\n{problem.test}\ncheck({problem.entry_point})\n"
        )
        assert passes(tests, LIMITS)
