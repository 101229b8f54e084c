"""Make tiny random models for tests: real architectures, two layers, their own tokenizer.

    python scripts/make_tiny_model.py FOLDER [FAMILY]

The same seed gives the same weights. The tokenizer is a byte-level BPE trained on the quickstart data, with a
ChatML template, `<|im_end|>` as the stop token and a pad token of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import AutoConfig

TEXT = Path(__file__).parents[1] / "recipes" / "data" / "quickstart" / "train.jsonl"
VOCABULARY = 512
# Embedding rows without a token, as published models have; a tokenizer class may add a token of its own.
SPARE = 8
PAD, START, STOP = "<|pad|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# family -> (keys that turn biases on, None where the architecture fixes them; its other settings)
FAMILIES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "llama": ("attention_bias mlp_bias", {}),
    "mistral": (None, {"sliding_window": None}),
    "qwen2": (None, {}),
    "qwen3": ("attention_bias", {"head_dim": 16}),
    "gemma2": ("attention_bias", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4096}),
    "gemma3_text": ("attention_bias", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4096}),
    "phi3": (None, {}),
    "gpt2": (None, {}),
}


def make(
    folder: str | Path,
    family: str = "llama",
    *,
    tied: bool = True,
    bias: bool = False,
    hidden: int = 64,
    seed: int = 0,
) -> Path:
    """Write a model and its tokenizer into `folder` and return it.

    Args:
        family: one of `FAMILIES`.
        tied: whether the head is the embedding.
        bias: biases in the linear layers, where the architecture has the choice (gpt2 and qwen2 always have).
        hidden: width, a multiple of 16.

    Raises:
        ValueError: `bias` for an architecture without that choice.
    """
    folder = Path(folder)
    tokenizer = make_tokenizer()
    config = make_config(family, tokenizer, tied=tied, bias=bias, hidden=hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _spread_biases(model)
    # Greedy, so that generation tests need no settings of their own.
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of `VOCABULARY` tokens; any text survives an encode and decode."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, STOP],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=STOP,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def make_config(
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    tied: bool = True,
    bias: bool = False,
    hidden: int = 64,
) -> Any:
    """The architecture's configuration at toy size."""
    if family not in FAMILIES:
        raise ValueError(f"family: {family!r} is none of {', '.join(FAMILIES)}")
    bias_keys, settings = FAMILIES[family]
    if bias and bias_keys is None:
        raise ValueError(f"bias: {family} has no choice of biases")
    shape: Callable[[int], dict[str, Any]] = _gpt2_shape if family == "gpt2" else _shape
    return AutoConfig.for_model(
        family,
        **shape(hidden),
        **settings,
        **dict.fromkeys((bias_keys or "").split() if bias else (), True),
        vocab_size=VOCABULARY + SPARE,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _shape(hidden: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }


def _gpt2_shape(hidden: int) -> dict[str, Any]:
    # Without dropout, as the others: a forward pass in training mode is then the one in evaluation mode.
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {"n_embd": hidden, "n_layer": 2, "n_head": 4, "n_positions": 1024, **dropout}


def _spread_biases(model: torch.nn.Module) -> None:
    """Biases start at zero, where a lost or doubled one would go unseen."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)


def _texts() -> Iterator[str]:
    for line in TEXT.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield f"user\n{row['prompt']}\nassistant\n{row['completion']}\n"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(f"usage: make_tiny_model.py FOLDER [{' | '.join(FAMILIES)}]")
    print(make(*sys.argv[1:]))
