"""`lrft generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.commands.arguments import NewTokens, Seed, Temperature, TopK, TopP
from lrft.commands.output import Json, Quiet, TrustRemoteCode, result
from lrft.core.notes import silence

if TYPE_CHECKING:
    from lrft.api.asking.generate import Generated


def generate_command(
    arguments: Annotated[
        list[Path],
        typer.Argument(
            help="Run folder, by default the latest under runs/, and a file of prompts: a .txt, a prompt a line, or "
            "rows, such as a .jsonl with `prompt` or `messages`.",
            metavar="[RUN] PROMPTS",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A .jsonl file, a line a prompt; gone on with after a kill.")],
    base: Annotated[bool, typer.Option("--base", help="Answer with the bare base model.")] = False,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    max_new_tokens: NewTokens = 256,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer a file of prompts, the way the run was taught to read them.

    Example: lrft generate runs/quickstart prompts.txt --out answers.jsonl
    """
    from lrft.api.asking.generate import generate_answers
    from lrft.evaluation.progress import EvaluationBar
    from lrft.evaluation.sampling import Sampling
    from lrft.registry.errors import UsageError

    if len(arguments) > 2:
        raise UsageError(f"{arguments[2]}: give one run and one file of prompts")
    silence(quiet)
    run = arguments[0] if len(arguments) == 2 else None
    sampling = Sampling(temperature, top_p, top_k, seed)
    with EvaluationBar() as show:
        found = generate_answers(
            run, arguments[-1], out, sampling, max_new_tokens, base, show, trust_remote_code
        )
    result(found, as_json, _show)


def _show(found: Generated) -> None:
    before = f", {found['before']} of them there before" if found["before"] else ""
    cut = f"; {found['unstopped']} reached --max-new-tokens" if found["unstopped"] else ""
    print(f"{found['out']}: {found['rows']} answers{before}{cut}")
