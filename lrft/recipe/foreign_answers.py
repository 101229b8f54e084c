"""What settings of other tools are answered by their value."""

from __future__ import annotations

from lrft.recipe.foreign_values import each_word

# Keys -> its values, squeezed -> what to say; `*` is every other value.
_BY_VALUE: dict[str, dict[str, str]] = {
    "val_size val_set_size test_size eval_size validation_split eval_split_ratio val_split_fraction eval_ratio": {
        "*": "write data.split: SHARE, or a number of rows",
        "0 00": "remove it, nothing is held out unless a recipe asks for it",
    },
    "mix_strategy stopping_strategy": {
        "interleaveunder firstexhausted": "write data.mix: {rows: first_exhausted}",
        "interleaveover allexhausted": "write data.mix: {rows: all_exhausted}",
        "concat": "remove it, every row of all sources is seen once unless weights are written",
    },
    "fp16 float16 half": {
        "true": "write model.dtype: float16",
        "false": "remove it, model.dtype says the precision",
    },
    "bf16 bfloat16 pure_bf16": {
        "true auto full": "write model.dtype: bfloat16",
        "false": "write model.dtype: float32, or remove it",
    },
    "mixed_precision precision": {
        "fp16 16 16true 16mixed float16": "write model.dtype: float16",
        "bf16 bf16true bf16mixed bfloat16": "write model.dtype: bfloat16",
        "no fp32 32 32true float32": "write model.dtype: float32",
    },
    "flash_attention flash_attn use_flash_attention use_flash_attention_2 use_flash_attn": {
        "true fa2 flashattention2": "write model.attention: flash_attention_2",
        "false disabled": "write model.attention: sdpa, or remove it",
        "auto": "write model.attention: auto",
        "sdpa": "write model.attention: sdpa",
    },
    "float32_matmul_precision": {
        "high medium": "write train.tf32: true",
        "highest": "remove it, that is train.tf32: false",
    },
    "sdp_attention": {"true": "write model.attention: sdpa"},
    "eager_attention": {"true": "write model.attention: eager"},
    "lora_target": {
        "all": "write adapter.targets: all-linear",
        "*": "write it as adapter.targets, a list of patterns",
    },
    "lora_target_linear": {"true": "write adapter.targets: all-linear"},
    "bias lora_bias": {
        "none false": "remove it, biases stay frozen unless trainable names them",
        "all": "write trainable: ['*.bias']",
        "*": "biases of adapted layers alone are not to be had; write trainable: [PATTERN], such as '*q_proj.bias'",
    },
    "eval_strategy evaluation_strategy": {
        "no false": "remove it, nothing is scored unless train.eval_every is written",
        "steps": "write train.eval_every: STEPS",
        "epoch": "scores are counted in steps; write train.eval_every: STEPS (lrft train --dry-run tells how many "
        "an epoch has)",
    },
    "save_strategy": {
        "no": "a run is always saved at its end; write a large train.save_every",
        "*": "checkpoints are counted in steps; write train.save_every: STEPS",
    },
    "report_to": {
        "wandb all": "write logging.wandb: PROJECT",
        "tensorboard": "write logging.tensorboard: true",
        "mlflow": "write logging.mlflow: PROJECT",
        "trackio": "write logging.trackio: PROJECT",
        "none": "remove it, numbers go to metrics.jsonl alone unless logging says otherwise",
        "*": "write logging.wandb, logging.tensorboard, logging.mlflow or logging.trackio",
    },
    "use_wandb": {"true": "write logging.wandb: PROJECT"},
    "truncation_side": {
        "left": "write data.too_long: truncate_left",
        "right": "write data.too_long: truncate_right",
    },
    "truncation_mode": {
        "keepstart": "write data.too_long: truncate_right",
        "keepend": "write data.too_long: truncate_left",
    },
    "use_cpu no_cuda": {"true": "write train.device: cpu"},
    "train_on_inputs train_on_input train_on_prompt train_on_prompts": {
        "false": "remove it, prompts are read and never learnt",
        "*": "prompts are read and never learnt; write data.format: text to learn every token of a column",
    },
    "completion_only_loss train_on_responses_only assistant_only_loss mask_prompt mask_inputs": {
        "true": "remove it, only answers are learnt",
        "*": "write data.format: text to learn every token of a column",
    },
    "mask_history": {
        "true": "write data.format: {method: chat, learn: last}",
        "false": "remove it, all answers of a conversation are learnt",
    },
    "random_init_weights reinit_weights": {"true": "write model.weights: random"},
    "full_finetuning full_finetune": {"true": "write trainable: full"},
    "load_in_16bit": {"true": "write quantization: none"},
    "task_type": {
        "causallm lm": "remove it, a model is a causal language model unless model.head gives it labels",
        "seqcls sequenceclassification textclassification": "write model.head: [LABEL, ...]",
        "*": "lrft trains causal language models, and scores of whole texts (model.head)",
    },
}
BY_VALUE = {key: each_word(answers) for key, answers in each_word(_BY_VALUE).items()}
