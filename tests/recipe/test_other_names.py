"""Names that other toolkits have for keys and values are answered with what to write here."""

from __future__ import annotations

import re

import pytest
import yaml

from lrft.lab.search.settings import parse_method
from lrft.recipe.catalog import describe, methods
from lrft.recipe.fields import known_keys
from lrft.recipe.foreign_answers import BY_VALUE
from lrft.recipe.foreign_keys import CHOICES, KEYS
from lrft.recipe.foreign_values import NOT_HERE, VALUES, each_word
from lrft.recipe.keys_not_here import REMARKS
from lrft.recipe.meant import CATALOG, meanings
from lrft.recipe.schema import Recipe
from lrft.registry.axes import FORMATS, SEARCHES
from lrft.registry.did_you_mean import squeezed
from lrft.registry.errors import UsageError
from tests.each import each
from tests.recipe.valid_recipe import VALID, changed, problems_of

ALIASED = [
    (key, lines) for key, declared in methods() if key != "search" for lines in declared.aliases.values()
]
WRITTEN = sorted(
    {
        snippet
        for answers in [*VALUES.items(), *BY_VALUE.items(), ("", REMARKS)]
        for said in answers[1].values()
        for snippet in re.findall(r"write ([a-z_.]+: (?:\{[^}]*\}|\[[^]]*\]|[a-z_0-9-]+))", said)
        if "PATTERN" not in snippet
    }
)


def laid_over(recipe, fragment):
    """A recipe with a fragment's keys in the place of its own; sections of data are merged."""
    for key, value in fragment.items():
        recipe[key] = {**recipe[key], **value} if key in ("data", "train", "eval", "model") else value
    return recipe


SCORED = {"model": {"head": ["a", "b"]}, "objective": "classify", "data": {"format": "classify"}}


PREFERRED = {"model": {"head": ["score"]}, "objective": "reward", "data": {"format": "preference"}}


EMBEDDED = {"objective": "contrastive", "data": {"format": "retrieval"}, "eval": {"tasks": ["retrieval"]}}


def with_lines(lines, key):
    fragment = yaml.safe_load(lines.replace("1e-6", "0.000001"))  # PyYAML itself reads 1e-6 as text
    section = key.rpartition(".")[0]
    base = yaml.safe_load(VALID.replace("2e-4", "0.0002"))
    base["train"]["max_steps"] = 5000  # long enough for every default that counts steps
    if fragment == {"format": "preference"}:  # says nothing of the objective, which pairs ask for
        base["objective"] = "dpo"
    if fragment == {"format": "unpaired"}:
        base["objective"] = "kto"
    if fragment in (
        {"format": "classify"},
        {"tasks": ["classification"]},
    ):  # nor of the head that labels ask for
        base = laid_over(base, SCORED)
    if fragment in ({"tasks": ["pairwise"]},):  # nor of pairs and the head that scores them
        base = laid_over(base, PREFERRED)
    if "retrieval" in str(fragment):  # nor of what learns embeddings
        base = laid_over(base, EMBEDDED)
    return yaml.safe_dump(laid_over(base, {section: fragment} if section else fragment))


@each(("key", "lines"), ALIASED)
def test_what_an_alias_says_to_write_is_a_recipe(write, key, lines):
    assert problems_of(write(with_lines(lines, key))) == []


@each("snippet", WRITTEN)
def test_what_a_foreign_key_or_value_is_answered_with_is_a_recipe(write, snippet):
    dotted, _, value = snippet.partition(": ")
    value = {"STEPS": "5", "PROJECT": "mine", "SHARE": "0.1"}.get(value, value)
    overrides = [f"{dotted}={value}"]
    if dotted == "trainable":
        overrides += ["~adapter"] if value == "full" else []
    if dotted == "adapter":
        overrides.append("trainable=full")
    if dotted == "data.split":
        overrides.append("~data.eval")
    if dotted == "data.mix":
        overrides.append("data.train=[owner/a, owner/b]")
    if dotted == "model.head":
        overrides += ["objective=classify", "data.format=classify"]
    if value == "flash_attention_2":
        overrides.append("train.device=cuda")
    assert problems_of(write(VALID), *overrides) == []


def test_an_alias_means_one_method_of_an_axis_and_hides_none():
    for key, registry in CATALOG.items():
        names = {squeezed(name) for name in registry.names()}
        seen = {}
        for name in registry.names():
            for alias in each_word(registry.declared(name).aliases):
                assert alias == name or squeezed(alias) not in names, f"{key} {alias}"
                assert seen.setdefault(squeezed(alias), name) == name or registry is FORMATS, f"{key} {alias}"


def test_what_is_said_to_be_missing_is_not_there():
    assert not [word for word in NOT_HERE if meanings(word)]


def test_every_foreign_key_leads_to_a_key_of_some_recipe():
    every = {".".join(keys) for keys in known_keys({})}
    for meant in KEYS.values():
        axis, _, setting = meant.rpartition(".")
        owners = CATALOG[axis].names() if axis in CATALOG else []
        of_method = [n for n in owners if setting in CATALOG[axis].declared(n).config.model_fields]
        assert meant in every or of_method, meant


def test_every_choice_leads_to_an_axis():
    assert {*CHOICES.values()} <= {*CATALOG, "schedule"}
    assert {key.rpartition(".")[0] for key in VALUES} <= {*Recipe.model_fields, *CATALOG}


def test_no_foreign_key_is_a_key_here_or_stands_twice():
    every = {".".join(keys).rpartition(".")[2] for keys in known_keys({})}
    tables = (KEYS, {**REMARKS, **CHOICES}, BY_VALUE)
    for table in tables:
        assert not set(table) & every
    assert sum(map(len, tables)) == len(set().union(*tables))


ADAPTER, OPTIMIZER, SCHEDULE, FORMAT = (
    "  method: lora\n  rank: 8",
    "  method: adamw\n  lr: 2e-4",
    "schedule: cosine",
    "format: chat",
)
VALUES_OF_OTHERS = [
    (ADAPTER, "  method: pissa", "it is an init: write init: pissa"),
    (ADAPTER, "  method: RSLoRA", "write adapter: {method: lora, rslora: true}"),
    (ADAPTER, "  method: qlora", "write quantization: nf4 and adapter: lora"),
    (ADAPTER, "  method: lora_plus", "it is an optimizer: write optimizer: lora_plus"),
    (ADAPTER, "  method: LoRA+", "it is an optimizer: write optimizer: lora_plus"),
    (ADAPTER, "  method: adalora", "it is an allocation: write adapter: svd_lora and allocate: adalora"),
    (ADAPTER, "  method: LoRA", "did you mean lora?"),
    (ADAPTER, "  method: lroa", "did you mean road or lora?"),
    (ADAPTER, "  method: pisa", "did you mean pissa? It is an init: write init: pissa"),
    (ADAPTER, "  method: full", "write trainable: full"),
    (ADAPTER, "  method: hut", "lrft does not have hut; known: abmll, afm, allora"),
    (OPTIMIZER, "  method: dora", "it is an adapter: write adapter: dora"),
    (OPTIMIZER, "  method: adamw_torch_fused", "write optimizer: adamw"),
    (OPTIMIZER, "  method: paged_adamw_8bit", "did you mean paged_adamw8bit?"),
    (OPTIMIZER, "  method: adamw_bnb_8bit", "write optimizer: adamw8bit"),
    (OPTIMIZER, "  method: adafactor", "lrft does not have adafactor; known: adam_mini, adamw"),
    (SCHEDULE, "quantization: 8bit", "write quantization: int8"),
    (SCHEDULE, "quantization: 4", "write quantization: nf4"),
    (SCHEDULE, "quantization: int8_weight_only", "write quantization: torchao_int8"),
    (SCHEDULE, "quantization: bitsandbytes", "write quantization: nf4"),
    (SCHEDULE, "quantization: gptq", "lrft does not have gptq; known: fp4, hqq, int8"),
    (SCHEDULE, "quantization: {method: nf4, load_in_4bit: true}", "nf4 is that already, remove the line"),
    (SCHEDULE, "quantization: {method: nf4, bnb_4bit_use_double_quant: true}", "did you mean quantization.double"),
    (SCHEDULE, "quantization: {method: nf4, bnb_4bit_compute_dtype: float16}", "did you mean model.dtype?"),
    (SCHEDULE, "quantization: {load_in_8bit: true}", "write quantization: int8"),
    (SCHEDULE, "init: pissa_niter_4", "write init: {method: pissa, niter: 4}"),
    (SCHEDULE, "init: true", "write init: default"),
    (SCHEDULE, "schedule: constant_with_warmup", "write schedule: {method: constant, warmup_ratio: 0.03}"),
    (SCHEDULE, "schedule: cosine_with_restarts", "write schedule: cosine_restarts"),
    (SCHEDULE, "schedule: Cosine", "did you mean cosine?"),
    (SCHEDULE, "objective: sft", "write objective: cross_entropy"),
    (SCHEDULE, "objective: ppo", "lrft does not have ppo; known: abmll, autolora_robust, ba_lora, "),
    (SCHEDULE, "objective: ipo", "write objective: {method: dpo, loss: ipo, logprob: mean}"),
    (SCHEDULE, "trainable: lora", "it is an adapter: write adapter: lora"),
    (FORMAT, "format: alpaca", "write format: instruction"),
    (FORMAT, "format: messages", "write format: chat"),
    (FORMAT, "format: ShareGPT", "did you mean sharegpt?"),
    (FORMAT, "format: completion", "write format: prompt_completion or format: text"),
    (FORMAT, "format: dpo", "write objective: dpo and data: {format: preference}"),
    ("name: owner/model", "name: o/n\n  dtype: fp16", "write float16"),
    ("name: owner/model", "name: o/n\n  attention: fa2", "write flash_attention_2"),
    ("tasks: [loss]", "tasks: [perplexity]", "write tasks: [loss]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "words"), VALUES_OF_OTHERS, ids=[new for _, new, _ in VALUES_OF_OTHERS]
)
def test_a_value_of_another_toolkit_or_axis_is_answered_with_what_to_write(write, old, new, words):
    (problem,) = problems_of(write(changed(old, new)))
    assert words in problem.message and problem.line
    assert problem.message.startswith(("unknown ", "must be "))


KEYS_OF_OTHERS = {
    "fp16: true": "write model.dtype: float16",
    "bf16: false": "write model.dtype: float32",
    "allow_tf32: true": "did you mean train.tf32?",
    "full_determinism: true": "did you mean train.deterministic?",
    "float32_matmul_precision: high": "write train.tf32: true",
    "save_total_limit: 3": "did you mean train.keep_last?",
    "val_set_size: 0.05": "write data.split: SHARE",
    "val_size: 0": "nothing is held out unless",
    "validation_split_percentage: 5": "write data.split: SHARE, which is 0.05",
    "mix_strategy: interleave_over": "write data.mix: {rows: all_exhausted}",
    "interleave_probs: 0.5,0.5": "list the sources under data.train",
    "data_files: [a.jsonl, b.jsonl]": "did you mean data.train?",
    "eval_strategy: steps": "write train.eval_every: STEPS",
    "warmup_steps: 10": "write it as schedule.warmup_steps",
    "optim: adamw_torch": "write optimizer: adamw",
    "optim: paged_adamw_8bit": "write optimizer: paged_adamw8bit",
    "finetuning_type: full": "write trainable: full",
    "finetuning_type: lora": "write adapter: lora",
    "peft_type: LORA": "write adapter: lora",
    "lora_target: all": "write adapter.targets: all-linear",
    "lora_target_modules: [q_proj]": "did you mean adapter.targets?",
    "modules_to_save: [lm_head]": "trainable: ['*embed_tokens*', '*lm_head*']",
    "bias: all": "write trainable: ['*.bias']",
    "neftune_noise_alpha: 5": "did you mean train.neftune?",
    "adapter_name_or_path: x": "did you mean model.adapter?",
    "layers_to_transform: [1]": "did you mean adapter.layers?",
    "exclude_modules: [lm_head]": "did you mean adapter.exclude?",
    "report_to: wandb": "write logging.wandb: PROJECT",
    "prompt_template: alpaca": "write data.format: instruction",
    "template: llama3": "write it as data.template",
    "chat_template: llama-3": "write data.format: chat and data.template: llama3",
    "chat_template: mine.jinja": "data.template: NAME or FILE",
    "default_system: Be kind.": "write data.format.system: TEXT",
    "stage: sft": "write objective: cross_entropy",
    "stage: dpo": "write objective: dpo and data: {format: preference}",
    "rl: ppo": "lrft does not have ppo; known: abmll, autolora_robust, ba_lora, ",
    "rl: kto": "write objective: kto",
    "dpo: {beta: 0.1}": "write objective: dpo",
    "output_dir: runs": "lrft train --out FOLDER",
    "resume_from_checkpoint: true": "lrft train RUN --resume",
    "deepspeed: zero3.json": "train.shard_base: true",
    "activation_offloading: true": "offload.activations: disk",
    "flash_attention: true": "write model.attention: flash_attention_2",
    "adam_epsilon: 1e-8": "did you mean optimizer.eps?",
    "train_on_inputs: false": "remove it",
    "pad_token: x": "name it as model.tokenizer",
    "use_dora: true": "write adapter: dora",
    "use_dora: false": "remove the line",
    "load_in_4bit: false": "remove the line",
    "galore_rank: 16": "trainable: full and optimizer: {method: galore, rank: 16}",
    "pissa_init: true": "write init: pissa",
    "init_lora_weights: pissa_niter_4": "write init: {method: pissa, niter: 4}",
    "quantization_bit: 8": "write quantization: int8",
    "bnb_4bit_use_double_quant: true": "it is quantization.double_quant here, a setting of fp4, nf4",
    "lr_scheduler_type: cosine": "write schedule: cosine",
    "lr_scheduler_type: linear_with_warmup": "write schedule: {method: linear, warmup_ratio: 0.03}",
    "gptq: true": "lrft does not have it",
    "mixed_precision: bf16": "write model.dtype: bfloat16",
    "mixed_precision: fp8": "did you mean model.dtype?",
    "sdp_attention: false": "remove the line",
    "random_state: 3407": "did you mean train.seed?",
    "training_args: {lr: 1}": "sections of their own",
    "full_finetuning: true": "write trainable: full",
    "hub_token: x": "export them in the environment",
}


@each("line", list(KEYS_OF_OTHERS))
@pytest.mark.parametrize("place", ["", "train"])
def test_a_key_of_another_toolkit_is_answered_with_what_to_write(write, place, line):
    old = "  max_steps: 100" if place else SCHEDULE
    (problem,) = problems_of(write(changed(old, f"{old}\n{'  ' if place else ''}{line}")))
    assert problem.message.startswith("unknown key; ") and KEYS_OF_OTHERS[line] in problem.message
    assert problem.line == (16 if place else 10)


@pytest.mark.parametrize("written", ["{methdox: chat}", "{type: chat}", "{foo: 1}", "{foo: 1, prompt: x}"])
def test_an_unknown_key_beside_a_missing_method_is_told_with_it(write, written):
    strange, missing = problems_of(write(changed(FORMAT, f"format: {written}")))
    assert strange.message.startswith("unknown key; ") and strange.line == missing.line == 13
    assert missing.key == "data.format.method" and "is required; write chat" in missing.message


def test_a_setting_of_some_method_is_not_unknown_where_the_method_is_missing(write):
    (problem,) = problems_of(write(changed(FORMAT, "format: {prompt: x, system: y}")))
    assert problem.key == "data.format.method"


def test_a_method_that_is_nearly_the_name_of_a_section_is_the_method(write):
    (problem,) = problems_of(write(VALID + "eva: true\n"))
    assert problem.message == "unknown key; it is an init: write init: eva"


def test_showing_a_method_by_another_name_says_what_to_write():
    with pytest.raises(
        UsageError, match=r"'qlora'; it is an adapter: write quantization: nf4 and adapter: lora"
    ):
        describe("qlora")


def test_a_task_nested_format_is_answered_where_it_stands(write):
    text = changed("tasks: [loss]", "tasks: [{method: gsm8k, format: alpaca}]")
    (problem,) = problems_of(write(text))
    assert problem.key == "eval.tasks.0.format.method" and "write format: instruction" in problem.message


@each(("word", "name"), [("autopeft", "bayesian"), ("AutoPEFT", "bayesian"), ("nfts", "evolution")])
def test_a_search_is_found_by_the_name_of_its_paper(word, name):
    with pytest.raises(UsageError, match=f"--method {word}: is called {name} here; write --method {name}"):
        parse_method(word)
    with pytest.raises(UsageError, match=f"it is a search: write lrft search --method {name}"):
        describe(word)
    assert set(SEARCHES.declared(name).aliases.values()) == {f"--method {name}"}
