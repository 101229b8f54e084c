"""What values of other toolkits are called here, where no method owns them; those of methods are their `aliases`."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def each_word(table: dict[str, T]) -> dict[str, T]:
    """A table in which several words share a line, with a line for each."""
    return {word: value for words, value in table.items() for word in words.split()}


_FLOATS = {
    "fp16 f16 half 16": "write float16",
    "bf16 auto": "write bfloat16",
    "fp32 f32 float single full 32": "write float32",
}
_NO = "none no off false null 0"
_WHOLE = "full fft fullfinetune fullfinetuning fullft fullparameter all"

# Keys -> their values in another toolkit, squeezed -> what to write instead.
_VALUES: dict[str, dict[str, str]] = {
    "adapter.dtype": {words: said for words, said in _FLOATS.items() if said != "write float16"},
    "adapter.method": {
        _NO: "write adapter: null with trainable: full",
        _WHOLE: "write trainable: full",
        "freeze": "write trainable: [PATTERN], with patterns of the parameters that train, such as '*.31.*'",
    },
    "data.too_long": {
        "truncate truncation cut keepstart right": "write truncate_right",
        "keepend left": "write truncate_left",
        "skip filter ignore remove": "write drop",
        "raise": "write error",
    },
    "export.onto": {"base full unquantized": "write original", "quantized": "write dequantized"},
    "model.attention": {
        "fa2 flash flashattn flashattn2 flashattention": "write flash_attention_2",
        "none disabled math native": "write eager",
        "torch": "write sdpa",
    },
    "model.dtype export.dtype": _FLOATS,
    "restart.method": {_NO: "write restart: null"},
    "select.method": {_NO: "write select: null"},
    "train.device": {
        "gpu cuda0 nvidia": "write cuda",
        "mps": "lrft trains on CUDA devices and on the CPU; write cpu",
    },
    "trainable.weights": {"adapters none peft": "write adapter", _WHOLE: "write full"},
}
VALUES = {key: each_word(answers) for key, answers in each_word(_VALUES).items()}

# Methods of other toolkits that lrft does not have, squeezed.
NOT_HERE = frozenset(
    """
    adafactor adamwtorch4bit adamwtorchao4bit lion8bit adagrad adalomo adamax adamwscheduler ademamix adopt
    badamratio came dion lamb lars lomo nadam pagedlion8bit pagedlion32bit pagedlion prodigy radam rmsprop
    rmspropbnb schedulefreesgd shampoo soap sophia stableadamw adaptionprompt
    llamaadapter llamapro longlora longqlora lycoris neftune poly
    ptuning pvera reft rosa s2ft waveft
    xadapter mica orthogonal spectral aqlm autoround awq bnb3bit compressedtensors eetq exl2 fp8 gptq int2 int3
    marlin mxfp4 nvfp4 quanto quip squeezellm vptq w4a16 w8a8 apo bco cpo gkd ktopair
    minillm nash orm ppo prm reinforce rlhf rloo xpo
    blocklora hut soka
    """.split()
)
