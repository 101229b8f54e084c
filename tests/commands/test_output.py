"""What a person sees: results on standard output, notes on standard error unless --quiet, tables that can be cut."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from rich.table import Table

from lrft.commands.output import show_table
from lrft.core import notes, stop
from lrft.core.notes import say


def test_quiet_leaves_the_result_alone(call, recipe):
    loud = call("train", recipe, "--out", "loud")
    assert "trainable parameters" in loud.err and "step 4/4" in loud.err
    trained = call("train", recipe, "--out", "run", "--quiet")
    assert trained.err == "" and trained.out.startswith("run: step 4, loss ")
    for command in (
        ["eval", "run"],
        ["merge", "run", "--out", "model"],
        ["export", "run", "--for", "peft", "--out", "peft"],
        ["doctor", "run"],
        ["data", "check", recipe],
    ):
        done = call(*command, "-q")
        assert done.code == 0 and done.err == "" and done.out
    assert call("eval", "run", "--limit", "1").err != ""  # notes are on again


def test_quiet_still_tells_errors(call, recipe, table_file):
    refused = call("data", "check", recipe, "train.max_length=20", "data.too_long=error", "-q")
    assert refused.code == 3 and refused.err.startswith("error: data.too_long: ")
    missed = call("reproduce", table_file, "-q")
    assert missed.code == 6 and missed.out == ""
    assert all(line.startswith("error: ") for line in missed.err.splitlines())


def test_quiet_silences_warnings_until_the_command_ends(recwarn):
    with notes.restored():
        notes.silence(True)
        say("a note")
        notes.warnings.warn("a warning", stacklevel=1)
        assert notes.silent() and not len(recwarn)
    assert not notes.silent()


@pytest.mark.parametrize(("rank", "world", "lead"), [("", "", True), ("0", "2", True), ("1", "2", False)])
def test_the_first_process_of_a_launch_speaks(monkeypatch, capsys, rank, world, lead):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    say("hello")
    assert capsys.readouterr().err == "hello\n" * lead


def test_off_a_terminal_nothing_is_wrapped_and_there_are_no_control_characters(call, recipe, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    trained = call("train", recipe, "--out", "run")
    assert [line.split()[1] for line in trained.err.splitlines() if line.startswith("step")] == [
        f"{step}/4" for step in range(1, 5)
    ]
    scored = call("eval", "run", "--baseline")
    assert any(line.startswith("loss 4/4  ") and "rows/s" in line for line in scored.err.splitlines())
    head, *rows = scored.out.splitlines()
    assert head.split() == ["task", "metric", "adapter", "baseline"]
    assert rows[0].startswith("loss (n=4)  loss") and rows[1].split()[0] == "perplexity"
    shown = call("data", "show", recipe, "--rows", 1)
    for text in (trained.err, scored.err, scored.out, shown.out):
        assert not {"\r", "\x1b", "…"} & set(text)


def test_the_plan_and_the_list_of_tables_are_one_row_a_line(call, recipe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    plan = call("train", recipe, "--dry-run").out.splitlines()
    assert plan[0].split() == ["plan", "tiny"]
    assert any(line.split() == ["rows", "20"] for line in plan)
    assert any(line.startswith("target all-linear  ") and line.endswith("of all matrices") for line in plan)
    listed = call("reproduce", "ls").out.splitlines()
    assert listed[0].split() == ["table", "tier", "rows", "cost", "last", "verdict"]
    assert all("not run yet" in line for line in listed[1:])


def long_table() -> Table:
    table = Table("name", "number")
    table.columns[1].justify = "right"
    table.add_row("[q_proj]" + "x" * 120, "1")
    table.add_row("二行\nin a cell", "1,000")
    return table


def test_a_table_in_a_pipe_is_aligned_and_whole(capsys):
    show_table(long_table())
    head, long, short = capsys.readouterr().out.splitlines()
    assert long == "[q_proj]" + "x" * 120 + "       1"
    assert head == "name" + " " * 126 + "number"
    assert short == "二行 in a cell" + " " * 117 + "1,000"


def test_a_table_on_a_terminal_is_drawn_and_loses_nothing(capsys, monkeypatch):
    monkeypatch.setattr("lrft.commands.output.is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "60")
    show_table(long_table())
    text = capsys.readouterr().out
    assert "┃" in text and "[q_proj]" in text and text.count("x") == 120


def test_a_ctrl_c_is_told_with_130(call, recipe, monkeypatch):
    def struck(*arguments, **settings):
        signal.raise_signal(signal.SIGINT)
        stop.poll()

    monkeypatch.setattr("lrft.api.training.begin.read_text", struck)
    done = call("train", recipe)
    assert (done.code, done.out) == (130, "")
    said = "error: interrupted (SIGINT): nothing was trained yet; the same command begins it\n"
    assert done.err.endswith(said)


def test_notes_never_reach_the_result_where_standard_error_is_closed():
    code = f"{sys.executable} -m lrft recipes show nowhere 2>&-"
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
