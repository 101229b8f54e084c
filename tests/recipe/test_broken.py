"""Broken recipes: each is one problem with the right key and line, what was wrong, and what would work."""

from __future__ import annotations

import pytest

from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from tests.each import each
from tests.recipe.valid_recipe import VALID, changed, problems_of

# (passage of the valid recipe, what replaces it, key of the one problem, its line, words of the message)
CASES = [
    # adapter
    ("  rank: 8", "  rnak: 8", "adapter.rnak", 5, "did you mean rank?"),
    ("  rank: 8", "  rank: sixteen", "adapter.rank", 5, "an integer greater than 0 and at most 65536, not 'sixteen'"),
    ("  rank: 8", "  rank: 0", "adapter.rank", 5, "an integer greater than 0 and at most 65536, not 0"),
    ("  rank: 8", "  rank: -8", "adapter.rank", 5, "an integer greater than 0 and at most 65536, not -8"),
    ("  rank: 8", "  rank: 1.5", "adapter.rank", 5, "an integer greater than 0 and at most 65536, not 1.5"),
    ("  rank: 8", "  rank: true", "adapter.rank", 5, "not true"),
    ("  rank: 8", "  rank: null", "adapter.rank", 5, "not null"),
    ("  rank: 8", "  rank:", "adapter.rank", 5, "not null"),
    ("  rank: 8", "  rank: '8'", "adapter.rank", 5, "an integer greater than 0 and at most 65536, not '8'"),
    ("  rank: 8", "  rank: [8]", "adapter.rank", 5, "not [8]"),
    ("  rank: 8", "  rank: {a: 1}", "adapter.rank", 5, "not a section"),
    ("  rank: 8", "  alpha: 0", "adapter.alpha", 5, "a number greater than 0 and at most 1000000, not 0"),
    ("  rank: 8", "  dropout: 1", "adapter.dropout", 5, "at least 0 and less than 1, not 1"),
    ("  rank: 8", "  rslora: yes", "adapter.rslora", 5, "true or false, not 'yes'"),
    ("  rank: 8", "  targets: 5", "adapter.targets", 5, "text, or a list of texts, not 5"),
    ("  rank: 8", "  targets: [q_proj, 5]", "adapter.targets", 5, "a list of texts"),
    ("  rank: 8", "  target: all-linear", "adapter.target", 5, "did you mean targets?"),
    ("  rank: 8", "  target_modules: [q]", "adapter.target_modules", 5, "did you mean adapter.targets?"),
    ("  rank: 8", "  r: 8", "adapter.r", 5, "did you mean adapter.rank?"),
    ("  rank: 8", "  lora_dropout: 0.1", "adapter.lora_dropout", 5, "adapter.dropout"),
    ("  rank: 8", "  lr: 1e-4", "adapter.lr", 5, "write it as optimizer.lr"),
    ("  rank: 8", "  dtype: fp32", "adapter.dtype", 5, "one of bfloat16 or float32, or null, not 'fp32'"),
    ("  rank: 8", "  rank_pattern: {q_proj: x}", "adapter.rank_pattern.q_proj", 5, "an integer greater than 0"),
    ("  rank: 8", "  rank_pattern: 8", "adapter.rank_pattern", 5, "a section whose values are integers"),
    ("  method: lora", "  method: lroa", "adapter.method", 4, "did you mean road or lora"),
    ("  method: lora", "  method: 5", "adapter.method", 4, "or zeroqat, not 5"),
    ("  method: lora", "  method:", "adapter.method", 4, "or zeroqat, not null"),
    ("  method: lora", "  name: lora", "adapter.name", 4, "did you mean method?"),
    ("  method: lora", "  type: lora", "adapter.type", 4, "did you mean method?"),
    # optimizer, schedule, quantization
    ("  method: adamw", "  method: adam", "optimizer.method", 7, "did you mean adamw"),
    ("  lr: 2e-4", "  lr: -1", "optimizer.lr", 8, "a number greater than 0 and at most 1000000, not -1"),
    ("  lr: 2e-4", "  lr: .nan", "optimizer.lr", 8, "not nan"),
    ("  lr: 2e-4", "  lr: .inf", "optimizer.lr", 8, "not inf"),
    ("  lr: 2e-4", "  lr: 2e-4x", "optimizer.lr", 8, "not '2e-4x'"),
    ("  lr: 2e-4", "  learning_rate: 2e-4", "optimizer.learning_rate", 8, "did you mean optimizer.lr?"),
    ("  lr: 2e-4", "  rank: 4", "optimizer.rank", 8, "write it as adapter.rank"),
    ("  lr: 2e-4", "  ratio: 4", "optimizer.ratio", 8, "a setting of lora_plus"),
    ("  lr: 2e-4", "  lr: 1" + "0" * 400, "optimizer.lr", 8, "too many digits"),
    ("  lr: 2e-4", "  weight_decay: -0.1", "optimizer.weight_decay", 8, "at least 0 and at most 1000000, not -0.1"),
    ("schedule: cosine", "schedule: cosin", "schedule.method", 9, "did you mean cosine?"),
    ("schedule: cosine", "schedule: cosine\ninit: null", "init", 10, "an adapter needs a start"),
    ("schedule: cosine", "schedule: 5", "schedule", 9, "not 5"),
    ("schedule: cosine", "schedule: {warmup_ratio: 1}", "schedule.warmup_ratio", 9, "less than 1, not 1"),
    ("schedule: cosine", "schedule: {warmup_steps: 200}", "schedule.warmup_steps", 9, "at most 100"),
    ("schedule: cosine", "schedule: {warmup: 0.1}", "schedule.warmup", 9, "schedule.warmup_ratio"),
    ("schedule: cosine", "schedule: {warmup: 3}", "schedule.warmup", 9, "schedule.warmup_steps"),
    ("schedule: cosine", "schedule:", "schedule", 9, "not null"),
    ("schedule: cosine", "shedule: cosine", "shedule", 9, "did you mean schedule?"),
    ("schedule: cosine", "quantization: nf8", "quantization.method", 9, "did you mean nf4?"),
    ("schedule: cosine", "quantization: 4", "quantization", 9, "the name of a quantization ("),
    ("schedule: cosine", "load_in_4bit: true", "load_in_4bit", 9, "write quantization: nf4"),
    # data
    ("  train: rows.jsonl", "  train: lost.jsonl", "data.train.source", 11, "no file or folder 'lost.jsonl'"),
    ("  train: rows.jsonl", "  train: ./lost", "data.train.source", 11, "looked for"),
    ("  train: rows.jsonl", "  train: $UNSET_X/x.jsonl", "data.train.source", 11, "$UNSET_X, which is not"),
    ("  train: rows.jsonl", "  train: my rows", "data.train.source", 11, "nor a hub id"),
    ("  train: rows.jsonl", "  train: a/b/c", "data.train.source", 11, "nor a hub id"),
    ("  train: rows.jsonl", "  train: ''", "data.train.source", 11, "text that is not empty"),
    ("  train: rows.jsonl", "  train:", "data.train", 11, "is empty"),
    ("  train: rows.jsonl", "  train: 5", "data.train", 11, "text, or a section with the keys source"),
    ("  train: rows.jsonl", "  train: [rows.jsonl, 5]", "data.train.1", 11, "with the keys source, name"),
    ("  train: rows.jsonl", "  train: []", "data.train", 11, "or a list of texts, or sections with"),
    ("  train: rows.jsonl", "  train: [rows.jsonl, no.jsonl]", "data.train.1", 11, "no file or folder 'no.jsonl'"),
    (
        "  train: rows.jsonl",
        "  train: [rows.jsonl, {source: rows.jsonl, wieght: 2}]",
        "data.train.1.wieght",
        11,
        "did you mean weight?",
    ),
    (
        "  train: rows.jsonl",
        "  train: [{source: rows.jsonl, repeat: 0}]",
        "data.train.0.repeat",
        11,
        "greater than 0, or null, not 0",
    ),
    (
        "  train: rows.jsonl",
        "  train: [{source: rows.jsonl, weight: 2}, {source: rows.jsonl}]",
        "data.train.1.weight",
        11,
        "weigh all of the sources, or none",
    ),
    (
        "  train: rows.jsonl",
        "  train: [{source: rows.jsonl, weight: 2, repeat: 2}]",
        "data.train.0.repeat",
        11,
        "said by the weights already",
    ),
    (
        "  train: rows.jsonl",
        "  mix: {order: alternating}\n  train: [{source: rows.jsonl, repeat: 2}, rows.jsonl]",
        "data.train.0.repeat",
        12,
        "with data.mix.order: alternating all have as many steps; remove it",
    ),
    (
        "  train: rows.jsonl",
        "  mix: {order: alternating, rows: 9}\n  train: [rows.jsonl, rows.jsonl]",
        "data.mix.rows",
        11,
        "all have as many steps; remove it",
    ),
    ("  train: rows.jsonl", "  train: '*.csv'", "data.train.source", 11, "no file matches '*.csv'"),
    ("  train: rows.jsonl", "  train: {source: rows.jsonl, take: 0}", "data.train.take", 11, "null, not 0"),
    ("  train: rows.jsonl", "  train: {source: rows.jsonl, row: line}", "data.train.row", 11, "about .txt files"),
    ("  train: rows.jsonl", "  train: {source: rows.jsonl, cap: 5}", "data.train.cap", 11, "unknown key"),
    ("  format: chat", "  format: chat\n  split: 0.1", "data.split", 14, "data.eval names some already"),
    ("  eval: rows.jsonl", "  split: 1.5", "data.split", 12, "greater than 0 and less than 1"),
    ("  eval: rows.jsonl", "  split: 0", "data.split", 12, "an integer greater than 0, or null, not 0"),
    ("  format: chat", "  format: chat\n  mix: {rows: 9}", "data.mix.rows", 14, "and there is one"),
    ("  format: chat", "  format: chat\n  mix: {rows: some}", "data.mix.rows", 14, "one of together,"),
    ("  format: chat", "  format: chat\n  too_long: windows", "data.too_long", 14, "of chat has a prompt"),
    ("  format: chat", "  format: text\n  stride: 5", "data.stride", 14, "write data.too_long: windows"),
    (
        "  format: chat",
        "  format: text\n  too_long: windows\n  stride: 512",
        "data.stride",
        15,
        "write at most 511",
    ),
    ("  train: rows.jsonl", "  trian: rows.jsonl", "data.trian", 11, "did you mean train?"),
    ("  train: rows.jsonl", "  train: {path: rows.jsonl}", "data.train.path", 11, "did you mean source?"),
    ("  train: rows.jsonl", "  train: {split: train}", "data.train.source", 11, "is required: path of"),
    ("  train: rows.jsonl", "  train: {source: 5}", "data.train.source", 11, "text that is not empty, not 5"),
    ("  train: rows.jsonl", "  train: {source: o/n, limit: 0}", "data.train.limit", 11, "or null, not 0"),
    ("  train: rows.jsonl", "  train: {source: rows.jsonl, name: main}", "data.train.name", 11, "hub data"),
    ("  train: rows.jsonl", "  train: {source: rows.jsonl, split: x}", "data.train.split", 11, "is local"),
    ("  train: rows.jsonl\n", "", "data.train", 10, "is required: path of"),
    ("  format: chat", "  format: chatt", "data.format.method", 13, "did you mean chat?"),
    ("  format: chat", "  format: 5", "data.format", 13, "the name of a format (chat,"),
    ("  format: chat", "  format: {prompt: '{q}'}", "data.format.method", 13, "is required; write chat"),
    (
        "  format: chat",
        "  format: {method: columns, prompt: '{q}'}",
        "data.format.completion",
        13,
        "is required",
    ),
    (
        "  format: chat",
        "  format: {method: columns, promt: '{q}', completion: '{a}'}",
        "data.format.promt",
        13,
        "did you mean prompt?",
    ),
    ("  format: chat", "  formt: chat", "data.formt", 13, "did you mean format?"),
    ("  format: chat", "  format: chat\n  too_long: cut", "data.too_long", 14, "one of error, drop"),
    # train
    ("  max_steps: 100", "  max_steps: -1", "train.max_steps", 15, "at most 1000000000, or null, not -1"),
    ("  max_steps: 100", "  max_steps: 1e2", "train.max_steps", 15, "not 100.0"),
    ("  max_steps: 100", "  max_step: 100", "train.max_step", 15, "did you mean max_steps?"),
    ("  max_steps: 100", "  steps: 100", "train.steps", 15, "did you mean train.max_steps?"),
    ("  max_steps: 100", "  num_train_epochs: 1", "train.num_train_epochs", 15, "did you mean train.epochs?"),
    ("  batch_size: 2", "  batch_size: 2\n  batch_size: 4", "train.batch_size", 17, "first on line 16"),
    ("  batch_size: 2", "  packing: on", "train.packing", 16, "true or false, or null, not 'on'"),
    ("  batch_size: 2", "  packing: 1", "train.packing", 16, "true or false, or null, not 1"),
    ("  batch_size: 2", "  clip: 0", "train.clip", 16, "greater than 0, or null, not 0"),
    ("  batch_size: 2", "  lr: 2e-4", "train.lr", 16, "write it as optimizer.lr"),
    ("  batch_size: 2", "  seed: 99999999999", "train.seed", 16, "less than 2147483648"),
    ("  batch_size: 2", "  device: gpu", "train.device", 16, "one of auto, cpu or cuda, not 'gpu'"),
    ("  batch_size: 2", "  model: {name: x}", "train.model", 16, "a section of its own"),
    ("  batch_size: 2", "  extends: x", "train.extends", 16, "at the top of a recipe"),
    ("  batch_size: 2", "  <<: {a: 1}", "train.<<", 16, "use `extends: other.yaml`"),
    ("  batch_size: 2", "  ? [a]\n  : 2", "train", 16, "a key must be a word"),
    ("  batch_size: 2", "  batch_size: !!python/name:os.system", "train.batch_size", 16, "is not allowed"),
    ("  batch_size: 2", "  batch_size: !!int x", "train.batch_size", 16, "'x' is not !!int"),
    # eval, export, logging
    ("  tasks: [loss]", "  tasks: loss", "eval.tasks", 18, "a list of task names (classification, confidence,"),
    ("  tasks: [loss]", "  tasks: [los]", "eval.tasks.0.method", 18, "did you mean loss?"),
    ("  tasks: [loss]", "  tasks: [loss, 5]", "eval.tasks.1", 18, "the name of a task"),
    ("  tasks: [loss]", "  tasks: [{max_new_tokens: 2}]", "eval.tasks.0.method", 18, "is required; write class"),
    (
        "  tasks: [loss]",
        "  tasks: [{method: gsm8k, max_new_token: 4}]",
        "eval.tasks.0.max_new_token",
        18,
        "did you mean max_new_tokens?",
    ),
    (
        "  tasks: [loss]",
        "  tasks:\n  - loss\n  - {method: gsm8k, max_new_tokens: x}",
        "eval.tasks.1.max_new_tokens",
        20,
        "an integer greater than 0, not 'x'",
    ),
    ("  tasks: [loss]", "  tasks: [{method: loss, data: no.jsonl}]", "eval.tasks.0.data", 18, "'no.jsonl'"),
    ("  tasks: [loss]", "  tasks: [{method: gsm8k, format: 5}]", "eval.tasks.0.format", 18, "format"),
    ("  tasks: [loss]", "  tasks: [{method: gsm8k, format: txt}]", "eval.tasks.0.format.method", 18, "text?"),
    ("  tasks: [loss]", "  limit: 0", "eval.limit", 18, "greater than 0, or null, not 0"),
    ("  tasks: [loss]", "  bach_tokens: 9", "eval.bach_tokens", 18, "did you mean batch_tokens?"),
    ("eval:\n", "export: {shard_size: 5TB}\neval:\n", "export.shard_size", 17, "such as 5GB"),
    ("eval:\n", "export: {onto: orignal}\neval:\n", "export.onto", 17, "did you mean original?"),
    ("eval:\n", "logging: {wandb: true}\neval:\n", "logging.wandb", 17, "text, or null, not true"),
    ("eval:\n", "wandb: x\neval:\n", "wandb", 17, "write it as logging.wandb"),
    ("eval:\n", "wandb_token: x\neval:\n", "wandb_token", 17, "export them in the environment"),
    # model
    ("  name: owner/model", "  nmae: owner/model", "model.nmae", 2, "did you mean name?"),
    ("  name: owner/model", "  name:", "model.name", 2, "text that is not empty, not null"),
    ("  name: owner/model", "  name: 5", "model.name", 2, "not 5"),
    ("  name: owner/model", "  name: lost.gguf", "model.name", 2, "no folder or .gguf file 'lost.gguf'"),
    ("  name: owner/model", "  name: ./lost", "model.name", 2, "looked for"),
    ("  name: owner/model", "  name: rows.jsonl/x/y", "model.name", 2, "nor a hub id"),
    ("  name: owner/model", "  name: o/n\n  dtype: half", "model.dtype", 3, "one of bfloat16, float32"),
    ("  lr: 2e-4", "  trust_remote_code: true", "optimizer.trust_remote_code", 8, "--trust-remote-code"),
    ("  name: owner/model", "  name: o/n\n  token: hf_x", "model.token", 3, "export them in the environment"),
    ("model:\n  name: owner/model", "model: owner/model", "model", 1, "write model: {name: 'owner/model'}"),
    ("model:\n  name: owner/model", "modle:\n  name: owner/model", "modle", 1, "did you mean model?"),
    ("model:\n  name: owner/model", "name: owner/model", "name", 1, "write it as model.name"),
    ("model:\n  name: owner/model", "model.name: owner/model", "model.name", 1, "indent the last part"),
    ("model:\n  name: owner/model", "base_model: owner/model", "base_model", 1, "did you mean model.name?"),
    ("model:\n  name: owner/model\n", "", "model.name", None, "is required: hub id, local folder"),
    # extends
    ("model:\n", "extends: nowhere\nmodel:\n", "extends", 1, "neither a file nor a packaged recipe"),
    ("model:\n", "extends: quikstart\nmodel:\n", "extends", 1, "did you mean quickstart"),
    ("model:\n", "extends: recipe.yaml\nmodel:\n", "extends", 1, "recipe.yaml extends recipe.yaml"),
    ("model:\n", "extends: [a, b]\nmodel:\n", "extends", 1, "the name of one recipe, not ['a', 'b']"),
    ("model:\n", "extends: 5\nmodel:\n", "extends", 1, "the name of one recipe, not 5"),
    # odd keys
    ("model:\n", "5: 6\nmodel:\n", "5", 1, "unknown key; known keys: model"),
    ("model:\n", "? \nmodel:\n", "''", 1, "unknown key"),
    ("model:\n", '"a\\nb\\e": 1\nmodel:\n', "'a\\nb\\x1b'", 1, "unknown key"),
    # YAML
    ("  batch_size: 2", "\tbatch_size: 2", "", 16, "a tab; indent with spaces"),
    ("  batch_size: 2", "   batch_size: 2", "", 16, "check the indentation"),
    ("  batch_size: 2", " batch_size: 2", "", 16, "does not line up"),
    ("  batch_size: 2", "  batch_size 2", "", 16, "expected `key: value`"),
    ("  batch_size: 2", "  batch_size: 2: 3", "", 16, "a second colon"),
    ("  batch_size: 2", "  batch_size: [2", "", 16, "not closed"),
    ("  batch_size: 2", "  batch_size: {2", "", 16, "not closed"),
    ("  batch_size: 2", "  batch_size: '2", "", 16, "a quote is not closed"),
    ("  batch_size: 2", "  batch_size: *two", "", 16, "no &name before it"),
    ("  batch_size: 2", "  batch_size: @two", "", 16, "not valid YAML"),
    ("model:\n", "a: b\n---\nmodel:\n", "", 2, "more than one document"),
]  # fmt: skip


@each(("old", "new", "key", "line", "words"), CASES)
def test_a_broken_recipe_is_one_problem_at_its_key_and_line(write, monkeypatch, old, new, key, line, words):
    path = write(changed(old, new))
    monkeypatch.chdir(path.parent)
    monkeypatch.delenv("UNSET_X", raising=False)
    (problem,) = problems_of("recipe.yaml")
    assert (problem.file, problem.line, problem.key) == ("recipe.yaml", line, key)
    assert words in problem.message
    assert "\n" not in str(problem)


def test_the_recipe_that_the_others_break_is_valid(write):
    assert problems_of(write(VALID)) == []


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(write):
    path = write("""\
        model:
          name: o/n
          dytpe: float32
        adapter: {method: lora, rank: 0, alhpa: 3}
        optimizer: sdg
        data:
          train: lost.jsonl
          format: chat
        train:
          seed: 1
          seed: 2
          packing: yes
          eval_every: 5
    """)
    problems = problems_of(path, "adapter.dropout=2", "nonsense", "~train.lr")
    assert [(p.line, p.key) for p in problems] == [
        (3, "model.dytpe"),
        (4, "adapter.alhpa"),
        (4, "adapter.rank"),
        (5, "optimizer.method"),
        (7, "data.train.source"),
        (11, "train.seed"),
        (12, "train.packing"),
        (13, "train.eval_every"),
        (None, ""),
        (None, "train.lr"),
        (None, "adapter.dropout"),
    ]


def test_the_error_prints_a_line_for_each_problem_and_ends_in_exit_code_2(write):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(changed("  rank: 8", "  rank: x\n  alpha: y")))
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_section_is_reported_by_the_keys_it_must_hold(write):
    problems = problems_of(write("train: {seed: 1}\n"))
    assert [p.key for p in problems] == ["model.name", "data.train"]


def test_a_section_dedented_by_mistake_is_not_also_reported_as_missing_values(write):
    problems = problems_of(write(changed("  lr: 2e-4", "lr: 2e-4")))
    assert [(p.key, p.line) for p in problems] == [("lr", 8)]
    assert "optimizer.lr" in problems[0].message


def test_a_secret_is_never_printed(write):
    path = write(changed("  name: owner/model", "  name: owner/model\n  api_key: hf_verysecret"))
    assert "hf_verysecret" not in "".join(map(str, problems_of(path)))


def test_no_problem_is_concluded_from_a_key_that_is_wrong_itself(write):
    text = changed("  eval: rows.jsonl", "  evla: rows.jsonl").replace(
        "train:\n  max", "train:\n  eval_every: 5\n  max"
    )
    assert [p.key for p in problems_of(write(text))] == ["data.evla"]
