"""Write the shown rows of docs/own-data.md: the rows of docs/rows/, what they become, and what of it is learnt.

    python scripts/data_page.py [--check]

`--check` writes nothing and exits 1 when the page is out of date. Every format of `data.format` has a recipe
docs/rows/NAME.yaml beside its rows; they go through the tokenizer and the template of the quickstart's model.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from generated import with_block, write_or_check  # noqa: E402
from lrft.api.data.show import ShownRow, show_rows  # noqa: E402
from lrft.core.notes import restored, silence  # noqa: E402
from lrft.recipe.load import load_recipe  # noqa: E402
from lrft.registry.axes import FORMATS  # noqa: E402
from lrft.registry.config import Source  # noqa: E402

PAGE = ROOT / "docs" / "own-data.md"
ROWS = ROOT / "docs" / "rows"
COUNT = 5


def page(old: str) -> str:
    """The page with every format's rows shown anew."""
    with restored():
        silence(True)
        for name in FORMATS.names():
            old = with_block(old, name, block(name))
    return old


def block(name: str) -> str:
    """The recipe, the rows as they lie in the file, and each as the model will see it."""
    recipe = ROWS / f"{name}.yaml"
    train = load_recipe(recipe).recipe.data.train
    assert isinstance(train, Source), "these recipes have one source"
    data = Path(train.source)
    shown = show_rows(recipe, COUNT)
    rows = data.read_text(encoding="utf-8").rstrip()
    return "\n".join(
        (
            f"```yaml\n{_recipe(recipe)}\n```",
            "",
            f"[{data.name}](rows/{data.name}):",
            "",
            f"```{data.suffix.lstrip('.')}\n{rows}\n```",
            "",
            f"`lrft data show docs/rows/{name}.yaml --rows {COUNT}`:",
            "",
            "```text",
            *(_shown(row) for row in shown),
            "```",
        )
    )


def _recipe(path: Path) -> str:
    """The recipe without its comment and the line that inherits the quickstart."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^(#.*|extends: .*)\n+", "", text, flags=re.MULTILINE).strip()


def _shown(row: ShownRow) -> str:
    heading = row.heading().replace(f"{ROOT}{os.sep}", "")
    text = re.sub(r"\n(?=rejected: )", "\n", row.text(coloured=False).plain.rstrip("\n"))
    return f"{heading}\n{text}\n"


def fresh() -> dict[Path, str]:
    """Every file that this script writes."""
    return {PAGE: page(PAGE.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    raise SystemExit(write_or_check(fresh(), sys.argv[1:]))
