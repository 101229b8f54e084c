"""docs/models.md is what its script finds, row by row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import make_tiny_model
import models_page
from lrft.core.notes import restored

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
QUICK = ["gpt2", "qwen2_moe", "rwkv"]
MERGE = 7  # the cell that holds a measured number


def rows() -> dict[str, list[str]]:
    """Family -> cells of the page."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if re.match(r"\| `\w+` \|", line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[cells[0].strip("`")] = cells
    return found


def check(family: str, folder: Path) -> None:
    with restored():
        row = models_page.try_family(family, folder)
    ours, written = [f"`{row.family}`", *row.cells], rows()[family]
    assert [c for k, c in enumerate(ours) if k != MERGE] == [c for k, c in enumerate(written) if k != MERGE]
    assert not ours[MERGE] or float(ours[MERGE]) < 1e-5
    for sentence in row.refusals:
        assert f"- `{family}`: {sentence}" in PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_family_that_can_be_made_and_no_other():
    assert list(rows()) == sorted(make_tiny_model.FAMILIES)


def test_the_page_is_laid_out_as_the_script_lays_it_out():
    import transformers

    assert PAGE.read_text(encoding="utf-8").startswith(
        models_page.HEAD.format(version=transformers.__version__)
    )


def test_what_the_readme_says_of_the_number_of_families_is_so():
    said = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"{len(make_tiny_model.FAMILIES)} families, tried" in " ".join(said.split())


@pytest.mark.parametrize("family", QUICK)
def test_a_row_is_what_is_found(tmp_path, family):
    check(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(make_tiny_model.FAMILIES) - set(QUICK)))
def test_every_other_row_is_what_is_found(tmp_path, family):
    check(family, tmp_path)
