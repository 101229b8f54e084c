"""Where a model stops on its own: one set of ids in every config that transformers or a server may read."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, GenerationConfig

from lrft.files.model_folder import check_model_folder
from lrft.model.hf import HF
from lrft.model.opening import opening
from lrft.model.tokenizer import is_left_out
from lrft.registry.protocols import Tokenizer

IDS = ("eos_token_id", "pad_token_id", "bos_token_id")
MODES = ("do_sample", "num_beams")  # decide which of the other settings mean anything, so they go first


def stops_as_trained(
    hf: HF, tokenizer: Tokenizer, stop_ids: Collection[int], pad_id: int, own_vocabulary: bool = False
) -> list[str]:
    """Let the model's configs stop where training stopped: the tokenizer's own eos first, a pad that is no text.

    The pad stops nothing where the tokenizer has a special token beside; else it is what ends an answer, as is
    transformers' default.

    The checkpoint's other generation settings stay, those left out that transformers ignores and refuses to save.

    Args:
        own_vocabulary: the tokenizer is not the checkpoint's, whose other ids then mean nothing.

    Returns:
        Names of the settings that were left out.
    """
    hf.generation_config, dropped = trained_generation(hf, tokenizer, stop_ids, pad_id, own_vocabulary)
    for config in {id(c): c for c in (hf.config, hf.config.get_text_config())}.values():
        for name in IDS if own_vocabulary else IDS[:2]:
            ids = getattr(hf.generation_config, name)
            if name == "pad_token_id" and ids in stop_ids:  # which has a row of the embedding that trains
                ids = None if own_vocabulary else getattr(config, name, None)
            if hasattr(config, name):
                setattr(config, name, ids)
    return dropped


def trained_generation(
    hf: HF, tokenizer: Tokenizer, stop_ids: Iterable[int], pad_id: int, own_vocabulary: bool = False
) -> tuple[GenerationConfig, list[str]]:
    """The generation config of a model as trained, and the names of settings that could not be kept."""
    settings = _settings(hf.generation_config)
    kept = type(hf.generation_config)()
    dropped = []
    for name in sorted(settings, key=lambda name: name not in MODES):
        before = getattr(kept, name, None)
        setattr(kept, name, copy.deepcopy(settings[name]))
        if not _savable(kept):
            setattr(kept, name, before)
            dropped.append(name)
    first = tokenizer.eos_token_id
    ends = sorted(set(stop_ids), key=lambda stop: (stop != first, stop))
    kept.eos_token_id = ends if len(ends) > 1 else ends[0]
    size = (
        hf.get_input_embeddings().num_embeddings
    )  # a tokenizer may have been given a pad that the model has not
    # transformers writes the pad behind an answer that ended, and takes what is like it in a prompt for padding.
    special = pad_id < size and is_left_out(tokenizer, pad_id)
    kept.pad_token_id = pad_id if special else ends[0]
    kept.bos_token_id = tokenizer.bos_token_id if own_vocabulary else hf.generation_config.bos_token_id
    return kept, dropped


def read_tokenizer(folder: Path, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a written folder as transformers alone reads it.

    Raises:
        DamagedFile, RecipeError: it is not what a tokenizer's files are.
    """
    check_model_folder(folder)
    with opening(str(folder), ""):
        return cast(Tokenizer, AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code))


def generation_of(folder: Path) -> GenerationConfig:
    """The generation config of a written folder as transformers alone reads it."""
    return GenerationConfig.from_pretrained(folder)


def _settings(config: GenerationConfig) -> dict[str, object]:
    """What a generation config says beyond the defaults, ids left out."""
    said = sorted(config.to_diff_dict().keys() - {*IDS, "transformers_version"})
    return {
        name: getattr(config, name) for name in said if hasattr(config, name) and not name.startswith("_")
    }


def _savable(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True
