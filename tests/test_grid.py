"""The grid of adapters by storage: a cell is what happened, and the page is what was recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import generated
import grid
import grid_cells
import grid_page
from lrft import __version__
from lrft.core.notes import restored, silence
from lrft.registry.errors import Interrupted, RecipeError


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory) -> grid_cells.Bench:
    made = grid_cells.Bench(tmp_path_factory.mktemp("grid"))
    made.__dict__["model"] = tiny()  # the same, made once for all tests
    return made


@pytest.fixture(autouse=True)
def quiet():
    with restored():
        silence(True)
        yield


def outcomes(cells) -> dict[str, str]:
    return {cell.what: cell.outcome for cell in cells}


@pytest.mark.parametrize(
    ("adapter", "storage", "export", "merge"),
    [("lora", "none", "peft", "done"), ("diablo", "nf4", "lora", "done"), ("loramoe", "int8", "refused", "refused")],
)  # fmt: skip
@pytest.mark.usefixtures("short_answers")
def test_a_cell_is_what_happened(bench, adapter, storage, export, merge):
    cells = grid_cells.Row(bench, adapter, storage).cells(grid.QUICK, __version__)
    told = {"train": "done", "merge": merge, "export": export, "resume": "done"}
    assert outcomes(cells) == told, [cell.said for cell in cells]
    recorded = {(c.adapter, c.storage, c.what): c for c in grid.read(grid.RECORD)}
    for cell in cells:
        known = recorded[adapter, storage, cell.what]
        assert (known.outcome, known.said) == (cell.outcome, cell.said)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_a_compiled_cell_has_graphs(bench, adapter):
    (cell,) = grid_cells.Row(bench, adapter, "none").cells(["compile"], __version__)
    assert cell.outcome == "done" and cell.found["graphs"] > 1, cell.said


def test_a_refusal_is_its_sentence_and_anything_else_is_a_fault(bench, monkeypatch):
    row = grid_cells.Row(bench, "lora", "none")

    def refuse():
        raise RecipeError(f"no such thing in {bench.scratch}/x", "adapter.rank")

    def fail():
        raise ValueError("a shape\nand more")

    def pass_on():
        raise RecipeError("cannot run it (NameError: x is not defined); name another")

    row.asked |= {"train": refuse, "merge": fail, "export": pass_on}
    assert row.cell("export", "1").outcome == "fault"
    refused, fault = row.cell("train", "1"), row.cell("merge", "1")
    assert (refused.outcome, refused.said) == ("refused", "adapter.rank: no such thing in SCRATCH/x")
    assert (fault.outcome, fault.said) == ("fault", "ValueError: a shape")
    assert row.cells(["train", "merge"], "1") == [replace(refused, seconds=0.0)]  # nothing more to ask


def test_wrong_logits_a_still_adapter_and_other_bytes_are_faults(bench, monkeypatch):
    row = grid_cells.Row(bench, "lora", "none")
    assert row.cell("train", "1").outcome == "done"
    monkeypatch.setattr(grid_cells, "merge", lambda run, out, onto, dtype: copy_of(bench.model, out))
    assert "logits are" in row.cell("merge", "1").said  # the base, without the change
    changed = row.folder / "run" / "adapter" / "adapter_model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
    fault = row.cell("resume", "1")
    assert fault.outcome == "fault" and "not the same bytes: adapter/adapter_model" in fault.said
    monkeypatch.setattr(grid_cells, "load_file", lambda path: {"A": grid_cells.torch.zeros(1)})
    monkeypatch.setattr(grid_cells, "train", lambda *_, **__: None)
    assert "no tensor of the adapter moved" in row.cell("train", "1").said


def copy_of(model: Path, out: Path) -> None:
    import shutil

    shutil.copytree(model, out)


def test_the_committed_page_has_every_adapter_and_is_what_its_record_says():
    assert grid.problems(grid.RECORD, grid.PAGE) == []


def test_a_check_says_which_adapter_to_add_and_what_is_not_current(tmp_path, capsys):
    cells = [cell for cell in grid.read(grid.RECORD) if cell.adapter not in ("lora", "dora")]
    record, page = tmp_path / "grid.json", tmp_path / "grid.md"
    grid.write(record, [*cells[:-1], replace(cells[-1], outcome="fault", said="it broke", version="0")])
    page.write_text("")
    assert grid.main(["--check", "--record", str(record), "--page", str(page)]) == 1
    said = capsys.readouterr().err
    assert "run scripts/grid.py --adapters dora,lora" in said and "grid.md is not what grid.json says" in said
    assert "it broke" in said and f"of another version than {__version__}" in said
    text = grid_page.page(grid.read(record))
    assert "**FAULT**" in text and "it broke" in text and "| `lora` |" not in text


def test_a_later_run_adds_only_what_is_missing(tmp_path, monkeypatch):
    asked = []

    class Row:
        def __init__(self, bench, adapter, storage):
            self.of = adapter, storage

        def cells(self, wanted, version):
            asked.append((*self.of, *wanted))
            return [grid_cells.Cell(*self.of, what, "done", "", {}, 0.0, version) for what in wanted]

    monkeypatch.setattr(grid, "Row", Row)
    files = ["--record", str(tmp_path / "grid.json"), "--page", str(tmp_path / "grid.md")]
    assert grid.main(["--adapters", "lora", "--storages", "none,nf4", "--what", "train", *files]) == 0
    assert grid.main(["--adapters", "lora,dora", "--storages", "none", "--what", "train,merge", *files]) == 0
    assert asked == [
        *(("lora", "none", "train"), ("lora", "nf4", "train")),
        *(("dora", "none", "train", "merge"), ("lora", "none", "merge")),
    ]
    lines = (tmp_path / "grid.json").read_text().splitlines()
    assert len(json.loads("".join(lines))) == 5 == len(lines) - 2  # a line a cell
    assert "| `lora` | none | yes | yes | . | . | . |" in (tmp_path / "grid.md").read_text()
    with pytest.raises(SystemExit):
        grid.main(["--adapters", "lorra", *files])


def test_an_interruption_is_no_fault_of_a_cell(bench):
    row = grid_cells.Row(bench, "lora", "none")

    def stop():
        raise Interrupted(15, "stopped")

    row.asked["train"] = stop
    with pytest.raises(Interrupted):
        row.cell("train", "1")


def test_a_page_that_names_its_own_script_is_not_left_over_from_another(tmp_path):
    (tmp_path / "grid.md").write_text("# Grid\n\nWritten by `python scripts/grid.py` from runs.\n")
    (tmp_path / "gone.md").write_text("# Gone\n")
    assert generated.out_of_date({}, [tmp_path]) == [tmp_path / "gone.md"]
