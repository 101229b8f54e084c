"""R6: whatever disk operation of a command fails, it says so, leaves nothing half-done, and works again."""

from __future__ import annotations

import pytest

from tests.commands.test_cli import OPTIONS
from tests.reliability.faulty_disk import ERRORS
from tests.reliability.full_disk import COMMANDS, FIND_LR, attack, everything

STRIDE = (
    7  # of the operations that are tried by `-m slow`; `python -m tests.reliability.full_disk` tries each
)

WRITES_NOTHING = {
    *("plan", "doctor", "env", "serve", "data show", "data check", "methods ls", "methods show"),
    *(f"recipes {word}" for word in ("ls", "show", "validate", "schema", "diff")),
}


# Of every kind of operation one, in the command where it costs least: a share of the way, an errno, once or for good.
@pytest.mark.parametrize(
    ("name", "share", "error", "stays"),
    [
        ("train", 0.02, 0, True),  # run.json, before the first step
        ("train", 0.2, 1, False),  # within a checkpoint
        pytest.param("train", 0.99, 2, True, marks=pytest.mark.slow),  # result.json
        ("eval", 0.5, 0, True),  # the report of scores that were taken
        ("export-peft", 0.3, 3, False),  # what a library writes
    ],
)
def test_a_command_on_a_failing_disk(bench, name, share, error, stays):
    operations = bench.whole(name)[1]
    at = 1 + int(share * operations)
    assert attack(bench, name, at, ERRORS[error], stays) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_on_a_disk_that_fails_anywhere(bench, name):
    operations = bench.whole(name)[1]
    wrong = []
    for count, at in enumerate(range(1, operations + 1, STRIDE)):
        wrong += attack(bench, name, at, ERRORS[count % 4], bool(count // 4 % 2))
    wrong += attack(bench, name, operations, ERRORS[0], True)
    assert wrong == []


@pytest.mark.slow
def test_the_full_loop_counts_what_it_tries(bench):
    said = []
    assert everything(bench, ("recipes",), said.append) == (4 * 4 * 2, [])
    assert said == ["recipes: 4 operations, 0 wrong so far"]


def test_every_command_that_writes_is_attacked():
    attacked = {command.words for command in COMMANDS.values()} | {FIND_LR}
    named = {name for name in OPTIONS if any(" ".join(words).startswith(f"{name} ") for words in attacked)}
    assert set(OPTIONS) - named == WRITES_NOTHING


def test_what_is_wrong_would_be_found(bench, monkeypatch):
    """A writer that lets the system's error through, and leaves its scratch behind."""
    from lrft.recipe import library

    def careless(path, text):
        with (path.parent / ".mine.yaml.tmp").open("w") as file:
            file.write(text)

    monkeypatch.setattr(library, "write_new_file", careless)
    bench._whole["recipes"] = ({}, 2)
    try:
        found = "\n".join(attack(bench, "recipes", 2, ERRORS[0], True))
    finally:
        del bench._whole["recipes"]
    assert "Traceback" in found and "No space left" in found and "left .mine.yaml.tmp" in found
