"""`lrft merge`: a run's adapter in dense weights, and how faithful they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrft.core.errors import ToleranceError
from lrft.data.steps import eval_batches
from lrft.export.fidelity import compare
from lrft.export.merge import check_free, merge_into, relative_change, truncate, write_merged
from lrft.jobs.open_run import open_run, trusts_remote_code
from lrft.jobs.say import say
from lrft.model.load import DTYPES, load_model
from lrft.train.folder import RunFolder


def merge_run(folder: RunFolder, out: Path, onto: str | None, rank: int | None = None) -> dict[str, Any]:
    """Merge a run's adapter into dense weights at `out`; returns the fidelity record, also written beside them.

    Args:
        rank: keep only so many leading rank components, of adapters that allow it.

    Raises:
        UsageError: `out` is not free.
        NotMergeable: the method is not a change of the weight.
        ToleranceError: the merged model is further from the adapter than `export.tolerance`; files are kept.
    """
    check_free(out)
    recipe, text, adaptation = open_run(folder)
    if rank is not None:
        truncate(adaptation.model, rank)
    onto = onto or recipe.export.onto
    dtype = DTYPES[recipe.export.dtype or recipe.model.dtype]
    trusted = trusts_remote_code(folder)
    dense = load_model(
        recipe.model, device=adaptation.model.device, trust_remote_code=trusted, seed=recipe.train.seed
    )
    if recipe.model.tokenizer is not None:  # the configuration has the ids of another vocabulary
        dense.hf.generation_config.eos_token_id = sorted(text.stop_ids)
    merge_into(dense, adaptation.model, onto=onto, dtype=dtype)
    write_merged(dense, text.tokenizer, out, recipe.export.shard_size)
    del dense
    section = recipe.model.model_copy(
        update={
            "name": str(out),
            "revision": None,
            "weights": "pretrained",
            "tokenizer": None,
            "dtype": recipe.export.dtype or recipe.model.dtype,
        }
    )
    merged = load_model(section, device=adaptation.model.device, trust_remote_code=trusted)
    merged.hf.to(adaptation.model.device)
    rows = text.held_out_encoded(recipe.export.fidelity_rows)
    batches = list(eval_batches(rows, recipe.eval.batch_tokens, text.pad_id))
    record = {
        "run": folder.path.name,
        "onto": onto,
        **({} if rank is None else {"rank": rank}),
        "dtype": str(dtype).removeprefix("torch."),
        "relative_change": relative_change(adaptation.model),
        "rows": len(rows),
        "tolerance": recipe.export.tolerance,
        **(compare(adaptation.model, merged, batches) if rows else {}),
    }
    RunFolder(out).write("fidelity.json", record)
    if not rows:
        say("data.eval: no held-out rows, so the merged model was not compared with the adapter")
    elif not max(record["kl_mean"], abs(record["loss_difference"])) <= recipe.export.tolerance:
        raise ToleranceError(
            f"{out}: the merged model is {record['kl_mean']:.3g} nats per token from the adapter and its loss "
            f"{record['loss_difference']:+.3g} away, more than "
            f"export.tolerance {recipe.export.tolerance}; `--onto dequantized` or export.dtype float32 stays closer",
            record,
        )
    return record
