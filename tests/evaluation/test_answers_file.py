"""A file of answers: whole lines in order, whatever a kill left."""

from __future__ import annotations

import json

import pytest

from lrft.evaluation.answers_file import AnswersFile
from lrft.registry.errors import LrftError, UsageError

ABOUT = {"run": "r", "sampling": {"seed": 0}}


def rows(*numbers: int) -> list[dict]:
    return [{"row": number, "output": "ä\n"} for number in numbers]


@pytest.fixture
def file(tmp_path):
    made = AnswersFile(tmp_path / "deep" / "a.jsonl")
    made.open(ABOUT, 9)
    made.append(rows(0, 1, 2))
    made.close()
    return made


def opened(path, about=ABOUT) -> AnswersFile:
    made = AnswersFile(path)
    made.open(about, 9)
    return made


def numbers(path) -> list[int]:
    return [json.loads(line)["row"] for line in path.read_text().splitlines()]


def test_it_goes_on_wherever_a_kill_cut_it(file):
    whole = file.path.read_bytes()
    for cut in range(len(whole) + 1):
        file.path.write_bytes(whole[:cut])
        again = opened(file.path)
        assert again.done == whole[:cut].count(b"\n")
        again.append(rows(*range(again.done, 4)))
        again.close()
        assert numbers(file.path) == [0, 1, 2, 3]


def test_a_kill_before_the_first_line_is_a_new_beginning_with_any_settings(file):
    file.path.write_bytes(b"")
    assert opened(file.path, {"run": "other"}).done == 0
    assert json.loads(file.path.with_name("a.jsonl.about.json").read_text()) == {"run": "other"}


def test_other_settings_are_refused_and_named(file):
    with pytest.raises(UsageError, match=r'were generated with sampling \{"seed": 0\}, not \{"seed": 1\}'):
        opened(file.path, {**ABOUT, "sampling": {"seed": 1}})
    assert numbers(file.path) == [0, 1, 2]


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    for content in ("mine\n", ""):
        (tmp_path / "a.jsonl").write_text(content)
        with pytest.raises(UsageError, match=r"is there already, and no a\.jsonl\.about\.json says"):
            opened(tmp_path / "a.jsonl")
        assert (tmp_path / "a.jsonl").read_text() == content


@pytest.mark.parametrize("line", ['{"row": 5}', "no JSON", "[]", "{}"])
def test_a_line_that_is_not_its_row_is_refused_by_line(file, line):
    lines = file.path.read_text().splitlines()
    file.path.write_text("\n".join([lines[0], line, lines[2], ""]))
    with pytest.raises(UsageError, match=r"a\.jsonl:2: is not the answer to row 1"):
        opened(file.path)


def test_another_text_in_a_line_is_another_file(file):
    whole = file.path.read_bytes()
    after_it = opened(file.path)
    after_it.append(rows(3))
    after_it.close()
    for at in (whole.index(b"output") + 10, len(whole) + 20):  # of a line of either sitting
        changed = bytearray(file.path.read_bytes())
        changed[at] ^= 1
        place = file.path.with_name("b.jsonl")
        place.write_bytes(changed)
        place.with_name("b.jsonl.about.json").write_bytes(
            file.path.with_name("a.jsonl.about.json").read_bytes()
        )
        with pytest.raises(UsageError, match=r"(are not those that were written|is not the answer to row)"):
            opened(place)
    file.path.write_bytes(file.path.read_bytes() + b'{"row": 4, "output": "of a kill before the sum"}\n')
    assert opened(file.path).done == 5


def test_two_processes_do_not_write_one_file(file):
    first = opened(file.path)
    with pytest.raises(UsageError, match="another process is writing it"):
        opened(file.path)
    first.close()
    opened(file.path).close()


def test_a_name_or_a_place_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"give a name that ends in \.jsonl"):
        AnswersFile(tmp_path / "a.txt")
    (tmp_path / "taken").write_text("")
    with pytest.raises(LrftError, match=r"--out .*taken/a\.jsonl: could not be written"):
        opened(tmp_path / "taken" / "a.jsonl")
