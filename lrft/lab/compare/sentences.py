"""What the numbers of a comparison are, in sentences."""

from __future__ import annotations

from lrft.lab.compare.record import Comparison


def sentences(record: Comparison) -> list[str]:
    """What the numbers are, in sentences."""
    arms, seeds = record["arms"], record["seeds"]
    lines = [
        f"- `{record['metric']}` is that of the last step on the held-out rows; its mean and the differences to "
        f"{arms[0]['label']} are over seeds {', '.join(map(str, seeds))}. At equal seeds all arms see the same rows in "
        "the same order.",
        "- Intervals are bootstrap intervals over seeds; those of fewer than five seeds are little more than the "
        "range. p is that of the sign-flip test, two-sided.",
    ]
    if record["tuning_seed"] is not None:
        rates, trials = record["rates"], record["trials"]
        searched = f"{trials} trials that Optuna proposed between {rates[0]:g} and {rates[-1]:g}"
        lines.append(
            f"- Each rate has the lowest loss of {searched if trials else 'the grid'} at seed "
            f"{record['tuning_seed']}, which no other number uses."
        )
    if any(arm["rate_at_edge"] for arm in arms):
        lines.append(
            "- (edge): the best rate is the first or the last that was tried; a better one may lie outside."
        )
    lost = [arm["label"] for arm in arms if None in arm["losses"]]
    if lost:
        lines.append(f"- Diverged at one seed or more, which the means leave out: {', '.join(lost)}.")
    lines += _costs(record)
    return [*lines, f"- Command: `{record['command']}`"] if record["command"] else lines


def _costs(record: Comparison) -> list[str]:
    """How the budgets were matched, and what the cost columns are."""
    arms = record["arms"]
    what = {
        "params": "trainable parameters",
        "memory": "bytes of adapter and optimizer state",
        "steps": "steps alone; ranks stay as written",
    }[record["match"]]
    changed = [
        f"{arm['label']} {arm['before']} -> {arm['rank']}" for arm in arms if arm["rank"] != arm["before"]
    ]
    counts = "; ".join(f"{arm['label']} {arm['trainable']:,} ({arm['state_bytes']:,} bytes)" for arm in arms)
    ranks = f" Ranks changed, alpha as written: {', '.join(changed)}." if changed else ""
    lines = [f"- Equal by {what}. Trainable (adapter and optimizer state): {counts}.{ranks}"]
    moved = [f"{a['label']} {a['trained']:,}" for a in arms if a["trained"] not in (None, a["trainable"])]
    if moved:
        lines.append(f"- At the end of training other numbers train: {', '.join(moved)}.")
    where = f"as jobs of {record['cluster']}" if record["cluster"] else f"on {record['threads']} threads each"
    lines += [
        f"- Seconds are means of whole runs, loading included, with {record['jobs']} at a time {where}; of a run that "
        "was interrupted they are the last sitting's. Seconds of steps include scores.",
        "- Peak memory is the process's, on a GPU its allocator's.",
    ]
    return lines
