"""A full table as Markdown: published and ours, then what each row trains and holds in memory."""

from __future__ import annotations

from lrft.lab.compare.report import set_ups
from lrft.lab.runs.report import table_lines
from lrft.lab.tables.file import PROVENANCE
from lrft.lab.tables.record import FullRecord

GIB = 2**30


def full_markdown(record: FullRecord) -> str:
    """The record of `size_full` or `run_full` as the text of NAME.md."""
    told = ", ".join(f"{count} {verdict}" for verdict, count in record["verdicts"].items())
    lines = [f"# {record['title']}", "", f"{record['paper']} Tier: {record['tier']}. {told}.", ""]
    lines += [f"- {text}" for text in record["settings"]]
    lines += ["", *_results(record), "", "## Sizes", "", *_sizes(record)]
    conflicts = dict.fromkeys(
        f"{n['row']}, {n['column']}: {n['conflict']}." for n in record["numbers"] if n["conflict"]
    )
    if record["notes"] or conflicts:
        lines += ["", "## Notes", "", *(f"- {text}" for text in (*record["notes"], *conflicts))]
    codes = dict.fromkeys(number["provenance"] for number in record["numbers"])
    lines += ["", "; ".join(f"**{code}** {PROVENANCE[code]}" for code in codes) + "."] if codes else []
    return "\n".join([*lines, *_where(record)]) + "\n"


def _results(record: FullRecord) -> list[str]:
    """One line a published number, and one a row without any."""
    told: list[list[str]] = []
    numbers = {
        row["label"]: [n for n in record["numbers"] if n["row"] == row["label"]] for row in record["rows"]
    }
    for label, found in numbers.items():
        if not found:
            told.append([label, "", "no verified number", "", "", "", ""])
        for number in found:
            column = record["columns"][number["column"]]
            digits, unit = column["digits"], f" ({column['unit']})" if column["unit"] else ""
            cells = [label, f"{number['column']}{unit}", f"{number['published']:.10g}", number["provenance"]]
            cells += ["" if number["ours"] is None else f"{number['ours']:.{digits}f}"]
            cells += ["" if number["difference"] is None else f"{number['difference']:+.{digits}f}"]
            told.append([*cells, number["verdict"]])
    return table_lines(["row", "column", "published", "", "ours", "difference", "verdict"], told)


def _sizes(record: FullRecord) -> list[str]:
    """What trains and what it holds, counted from the modules and the optimizer that training would build."""
    heads = ["row", "recipe", "trainable", "% of base + trainable", "weights", "adapter", "gradients"]
    heads += ["optimizer state", "together (GiB)", "steps", "tokens"]
    told = []
    for row in record["rows"]:
        memory = [row["memory"].get(key) for key in ("weights", "adapter", "gradients", "optimizer_state")]
        command = " ".join([row["recipe"] or "", *row["overrides"]]).strip()
        cells = [row["label"], f"`{command}`" if row["recipe"] else ""]
        cells.append(row["state"] if row["trainable"] is None else f"{row['trainable']:,}")
        cells.append("" if row["trainable_percent"] is None else f"{row['trainable_percent']:.3f}")
        cells += ["" if size is None else f"{size / GIB:.2f}" for size in (*memory, row["memory_bytes"])]
        cells.append("" if row["steps"] is None else f"{row['steps']:,}")
        cells.append("" if row["tokens"] is None else f"{row['tokens']:.3g}")
        told.append(cells)
    note = "By formula, without activations; weights to together are GiB."
    return [note, "", *table_lines(heads, told)]


def _where(record: FullRecord) -> list[str]:
    """Seeds, set-ups and wall time, of a record whose rows were run."""
    if not record["environments"]:
        return []
    seeds = "the recipes' own" if record["seeds"] is None else ", ".join(map(str, record["seeds"]))
    lines = ["", "## Where it ran", "", f"- Seeds: {seeds}."]
    if record.get("overrides"):
        lines.append(f"- Changed for this run: `{' '.join(record['overrides'])}`.")
    lines += set_ups(record["environments"])
    return [*lines, f"- {record['seconds']:g} s for what this call ran"]
