"""What an adapter is exported for. A format of files bears a method's name, and this file alone says it."""

from __future__ import annotations

PLAIN = "lora"  # the target, and what a GGUF file calls its adapter
PLAIN_NAME = "LoRA"
PEFT, VLLM, GGUF, OLLAMA = "peft", "vllm", "gguf", "ollama"

TARGETS = {
    PEFT: "the adapter as PEFT has the method",
    PLAIN: "plain LoRA that PEFT loads, whatever the method, with its error",
    VLLM: "plain LoRA of one rank, checked against what vLLM takes",
    GGUF: "a GGUF adapter for llama.cpp; with --merged the whole model",
    OLLAMA: "GGUF and a Modelfile with the template and the stops of training",
}
OF_TEXTS = (PEFT, PLAIN)
"""Those that also say what scores or embeds whole texts; what the others are written for gives answers alone."""
