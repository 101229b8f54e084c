"""What a folder inside of a run stands for, and what it may not name."""

from __future__ import annotations

import json

import pytest

from lrft.registry.errors import UsageError
from lrft.training.folder import find
from lrft.training.within_run import within_run


def test_a_step_is_a_number_so_that_no_text_leads_out_of_the_run(tmp_path):
    run = tmp_path / "run"
    for folder in (run / "best", run / "checkpoints/step-x", run / "checkpoints/step-4", tmp_path / "else"):
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    (run / "run.json").write_text("{}")
    record = run / "best/checkpoint.json"
    record.write_text(json.dumps({"step": 4}))
    found = within_run(run / "best")
    assert found is not None and found.checkpoint == run / "checkpoints/step-4"
    for odd in ("x/../../../else", "4", True, None):
        record.write_text(json.dumps({"step": odd}))
        with pytest.raises(UsageError, match="has no number of a step"):
            within_run(run / "best")


def test_an_adapter_that_a_run_has_not_is_named_with_the_reason(tmp_path):
    for name in ("run.json", "recipe.yaml"):
        (tmp_path / name).write_text("{}")
    for name, why in (("best", "no step was scored"), ("last", "first checkpoint"), ("adapter", "finished")):
        with pytest.raises(UsageError, match=f"the run has no {name}/.*{why}.*; name {tmp_path}$"):
            find(tmp_path / name)


def test_what_a_run_was_merged_to_is_no_run(tmp_path):
    for name in ("fidelity.json", "recipe.yaml"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=f"is what lrft merge or lrft export wrote.*lrft doctor {tmp_path} "):
        find(tmp_path)
