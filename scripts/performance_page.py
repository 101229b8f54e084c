"""Write docs/performance.md, and the plots on it, from the records in docs/measured/.

    python scripts/performance_page.py [--check]

`--check` writes nothing and exits 1 when something is out of date. A record is what a `scripts/bench_*.py` or
`scripts/gpu_check.py` printed and `--record docs/measured/NAME.json` kept; no number is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from generated import plain, table, write_or_check  # noqa: E402
from performance_curves import MEASURED, curves, plots  # noqa: E402
from performance_words import (  # noqa: E402
    NAMES,
    Record,
    Row,
    label,
    method,
    name_of,
    of_kind,
    over_lora,
    pairings,
    shown,
    source,
    spread,
    work,
)

PAGE = ROOT / "docs" / "performance.md"
PEER_HEADS = (
    "work",
    "method",
    "peer",
    "peer / lrft: median (least to most)",
    "n",
    "tokens per second, lrft and peer",
    "of the ceiling",
    "record",
)
LORA_HEADS = ("work", "method", "its time / LoRA's: median (least to most)", "n", "record")
MEMORY_HEADS = ("work", "method", "peak", "MiB", "lrft / peer", "n", "record")

INTRODUCTION = """# Performance

The loss reads only the supervised positions, through the head in chunks, so that logits are never kept. Adapters
compute in the model's precision from float32 master weights; a low-rank term, its dropout and its gain are one node
beside the frozen product, and what a norm or a gate was made of is kept once. A CPU that multiplies bfloat16 more
slowly than float32 (Intel without AMX, or older than AVX512-BF16) is given float32 numbers, whose product is rounded;
the run says so. Rows are packed, and on `segmented` and `flash_attention_2` attention the rows of a micro-batch are
joined to one, so that no padding is computed. Frozen weights are decoded again in the backward pass instead of being
held. Norms, gated feed-forward blocks and rotations are one node each where a model's code is of a known form.

On a CPU these, `segmented` attention, the loss and products with what dropout left are kernels of lrft's own, C++ in
`lrft/ops/kernels` that the machine's compiler (`CXX`, `c++`, `g++` or `clang++`) builds in five seconds, once. Of
attention they keep a logarithm for every query and head. DoRA with dropout multiplies a weight with its input and with
what dropout left of it: with these kernels the second product is the first less that of the few entries that were
dropped. Where there is no compiler a run says so and goes by torch's operations: attention then keeps the
probabilities of documents of up to 512 tokens and forms those of longer ones again, so that memory grows with the
length of a document and not with its square either way. Runs of at least 1e13 tokens times numbers in matrices on a
GPU compile norms, gates and rotations, which was not run here. With `model.liger: true` norms and gates are Liger's
kernels, which need a GPU and `pip install lrft[liger]` and were not run here. `lrft train --profile`
([commands](commands.md)) says where the steps of a run go.

This page is made by `scripts/performance_page.py` from the records in `docs/measured/`. Two sides of a ratio are timed
in one process, in turn, peers at their defaults; steps that other processes disturbed are thrown away, and under five
quiet pairs there is no figure. The last column names the record, listed at the end with its command, machine and
versions. The share of the ceiling is a step's arithmetic over what the machine's measured rate of matrix products
allows in its time (`scripts/bench_ceiling.py` has the formula)."""
END = """[Choosing a method](choosing.md) has memory, trained numbers and bytes of optimizers; the [log](log.md) what
helped and what did not."""
SHOWN = ("lrft", "torch", "transformers", "peft", "trl")  # of the versions that a record holds
NOTHING = "Nothing was measured on a GPU."


def records() -> list[Record]:
    """All of them, in the order of the files' names; each with its number."""
    found = [
        r for path in sorted(MEASURED.glob("*.json")) for r in json.loads(path.read_text(encoding="utf-8"))
    ]
    return [{**record, "number": number} for number, record in enumerate(found, 1)]


def page(found: Sequence[Record]) -> str:
    """The whole page; a rehearsal is no measurement and is left out."""
    found = [record for record in found if not record["settings"].get("rehearse")]
    sections = [
        ("A step beside a peer's", beside_peers),
        ("Methods beside lrft's LoRA", beside_lora),
        ("Cost curves", curves),
        ("Whole processes", whole),
        ("Memory of a step", memory),
        ("The ceiling", ceilings),
        ("Generation", generation),
        ("Optimizers", optimizers),
        ("On a GPU", gpu),
    ]
    parts = [INTRODUCTION, "<!-- measured:performance -->"]
    for title, made in sections:
        if block := made(found):
            parts.append(f"## {title}\n\n{block}")
    parts.append("<!-- /measured:performance -->")
    parts += [f"## Records\n\n{sources(found)}", missed(found)]
    if before := earlier(found):
        heading = "## Earlier figures"
        parts += [heading, "<!-- measured:earlier -->", before, "<!-- /measured:earlier -->"]
    parts.append(END)
    return "\n\n".join(parts) + "\n"


def beside_peers(found: Sequence[Record]) -> str:
    """The newest pairing of each kind with another library."""
    return shown(PEER_HEADS, newest(peer_rows(found), 3))


def peer_rows(found: Sequence[Record]) -> list[Row]:
    """Every pairing with another library that has a figure."""
    rows: list[Row] = []
    for record, pair in pairings(found):
        other = pair["sides"][1]
        if other.startswith("lrft:"):
            continue
        rates = pair.get("tokens_per_second")
        both = " and ".join(f"{rates[side]:.0f}" for side in pair["sides"]) if rates else ""
        shares = pair.get("share", {})
        reached = " and ".join(f"{shares[side]:.0%}" for side in pair["sides"]) if shares else ""
        name, peer = method(pair["sides"][0], record), NAMES[other.partition(":")[0]]
        rows.append(
            (work(record), name, peer, spread(pair["ratio"]), str(pair["n"]), both, reached, source(record))
        )
    return rows


def beside_lora(found: Sequence[Record]) -> str:
    """Every method's newest time over that of lrft's own LoRA in the same process."""
    return shown(LORA_HEADS, newest(lora_rows(found), 2))


def lora_rows(found: Sequence[Record]) -> list[Row]:
    """Every time over LoRA's that was measured."""
    rows: list[Row] = []
    for record, pair in pairings(found):
        if pair["sides"][1].startswith("lrft:"):
            name, cost = method(pair["sides"][0], record), spread(over_lora(pair["ratio"]))
            rows.append((work(record), name, cost, str(pair["n"]), source(record)))
    return rows


def whole(found: Sequence[Record]) -> str:
    """`lrft train` beside a peer's process, loading and all; and launches of lrft alone."""
    rows: list[Row] = []
    launches: dict[str, str] = {}  # the last of each recipe
    for record in of_kind(found, "whole"):
        result = record["result"]
        if (first := result.get("first")) is not None:
            n = f"{result['n']} launches, record {source(record)}"
            said = f"From launch to the end of step 1 of `{result['recipe']}`: {spread(first)} s ({n})."
            launches[result["recipe"]] = said
        for pair in result.get("pairings", ()):
            if pair["ratio"] is not None:
                ours, peer = pair["sides"]
                rates, starts, peaks = (pair[key] for key in ("tokens_per_second", "first", "peak"))
                figures = (
                    spread(pair["ratio"]),
                    str(pair["n"]),
                    f"{rates[ours]:.0f} and {rates[peer]:.0f}",
                    f"{starts[ours]:.1f} and {starts[peer]:.1f}",
                    f"{peaks[ours] / 2**20:,.0f} and {peaks[peer] / 2**20:,.0f}",
                )
                named = method(f"lrft:{record['settings']['adapter']}", record), NAMES[peer.partition(":")[0]]
                rows.append((processed(record), *named, *figures, source(record)))
    heads = ("work", "method", "peer", "peer / lrft: median (least to most)", "n")
    more = ("tokens per second, lrft and peer", "s to the end of step 1", "peak, MiB", "record")
    return "\n\n".join(filter(None, [shown((*heads, *more), rows), *launches.values()]))


def processed(record: Record) -> str:
    """What whole processes went over."""
    settings = record["settings"]
    step, rows = settings["examples"], "rows of GSM8K" if settings["gsm8k"] else "rows of random words"
    words = f"{record['result']['steps'] * step} {rows}: packed by lrft, {step} a step padded by a peer"
    return f"{name_of(settings['model'])}, {words}"


def memory(found: Sequence[Record]) -> str:
    """The newest peaks of both sides."""
    return shown(MEMORY_HEADS, newest(memory_rows(found), 3))


def memory_rows(found: Sequence[Record]) -> list[Row]:
    """All peaks of both sides."""
    rows: list[Row] = []
    for record in of_kind(found, "memory"):
        named = work(record), method(record["settings"]["adapter"], record)
        n = str(record["result"]["n"])
        for mark, what in (("step", "over the steps"), ("whole", "with loading")):
            entry = record["result"][mark]
            sizes = ", ".join(f"{NAMES[side]} {size / 2**20:,.0f}" for side, size in entry["bytes"].items())
            ratio = "" if entry["ratio"] is None else f"{entry['ratio']:.2f}"
            rows.append((*named, what, sizes, ratio, n, source(record)))
    return rows


def earlier(found: Sequence[Record]) -> str:
    """What newer figures of the same work stand in the place of."""
    tables = []
    for heads, rows, keys in (
        (PEER_HEADS, peer_rows(found), 3),
        (LORA_HEADS, lora_rows(found), 2),
        (MEMORY_HEADS, memory_rows(found), 3),
    ):
        now = newest(rows, keys)
        tables.append(shown(heads, [row for row in rows if row not in now]))
    return "\n\n".join(filter(None, tables))


def newest(rows: Sequence[Row], keys: int) -> list[Row]:
    """Of rows that agree in their first columns the last, which are in the order of their records."""
    return list({row[:keys]: row for row in rows}.values())


def ceilings(found: Sequence[Record]) -> str:
    """What machines can do."""
    rows = []
    for record in of_kind(found, "ceiling"):
        result = record["result"]
        rates = f"{result['gflops']:,.0f}", f"{result['tokens_per_second']:,.0f}"
        rows.append((work(record), *rates, source(record)))
    return shown(("work", "GFLOP/s over the model's shapes", "tokens per second at most", "record"), rows)


def generation(found: Sequence[Record]) -> str:
    """Tokens per second, a pairing a line."""
    rows = []
    for record in of_kind(found, "generate"):
        settings, new = record["settings"], record["result"]["new"]
        prompts = f"{settings['rows']} prompts of {settings['length']} tokens, {new} new ones each"
        for pair in record["result"]["pairings"]:
            if pair["ratio"] is not None:
                rates = pair["tokens_per_second"]
                both = ", ".join(f"{side} {rates[side]:.0f}" for side in pair["sides"])
                named = f"{pair['sides'][1]} / {pair['sides'][0]}"
                rows.append((prompts, named, spread(pair["ratio"]), str(pair["n"]), both, source(record)))
    heads = ("work", "times of", "ratio: median (least to most)", "n", "tokens per second", "record")
    return shown(heads, rows)


def optimizers(found: Sequence[Record]) -> str:
    """Milliseconds and bytes of a step; what could not take the tensors is left out here and named below."""
    rows = []
    for record in of_kind(found, "optim"):
        settings = record["settings"]
        what = "all weights" if settings["full"] else f"factors of rank {settings['rank']}"
        for row in record["result"]["optimizers"]:
            if row["bytes"] is not None:
                ms = "" if row["ms"] is None else f"{row['ms']:.1f} ({row['min']:.1f} to {row['max']:.1f})"
                counted = f"{row['numbers']:,}", ms, str(row["n"]), f"{row['bytes'] / row['numbers']:.2f}"
                rows.append((f"`{row['optimizer']}`", what, *counted, source(record)))
    heads = ("optimizer", "over", "numbers", "ms a step (least to most)", "n", "bytes of state a number")
    return shown((*heads, "record"), rows)


def gpu(found: Sequence[Record]) -> str:
    """What `scripts/gpu_check.py` found on cards."""
    rows = []
    for record in of_kind(found, "gpu"):
        for check in record["result"]["checks"]:
            outcome = "passed" if check["passed"] else "**failed**"
            card = record["hardware"]["gpu"]
            rows.append((check["name"], card, outcome, plain(check["said"]), source(record)))
    return shown(("check", "card", "outcome", "figures", "record"), rows) or NOTHING


def sources(found: Sequence[Record]) -> str:
    """Every record: command, machine, versions."""
    rows = []
    for record in found:
        hardware = record["hardware"]
        slow = hardware.get("bfloat16_products_in", "bfloat16") != "bfloat16"
        told = "which multiplies bfloat16 in float32" if slow else ""
        parts = f"{hardware['cores']} cores", hardware["cpu"], told, hardware.get("gpu")
        versions = ", ".join(f"{name} {v}" for name, v in record["versions"].items() if v and name in SHOWN)
        machine = ", ".join(filter(None, parts))
        rows.append((str(record["number"]), record["date"], f"`{record['command']}`", machine, versions))
    return table(("record", "date", "command", "machine", "versions"), rows)


def missed(found: Sequence[Record]) -> str:
    """What records say that they do not show."""
    lines = []
    for record in found:
        result = record["result"]
        entries = [*result.get("pairings", ()), *result.get("points", ())]
        said = [
            f"{label(e['sides'][0])} beside {label(e['sides'][1])}: {e['missed']}"
            for e in entries
            if e["missed"]
        ]
        said += [
            f"`{row['optimizer']}`: {row['missed']}" for row in result.get("optimizers", ()) if row["missed"]
        ]
        said += [result["missed"]] if result.get("missed") else []
        lines += [
            f"- Record {record['number']}: {plain(line)}." for line in (*record.get("missed", ()), *said)
        ]
    return "\n".join(["What was missed:", "", *lines]) if lines else "Nothing was missed."


def fresh() -> dict[Path, str]:
    """Every file that this script writes."""
    found = records()
    return {PAGE: page(found), **plots(found)}


if __name__ == "__main__":
    raise SystemExit(write_or_check(fresh(), sys.argv[1:]))
