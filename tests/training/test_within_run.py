"""What a folder inside of a run stands for, and what it may not name."""

from __future__ import annotations

import json

import pytest

from lrft.registry.errors import UsageError
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
