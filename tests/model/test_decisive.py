"""What of a model's files decides numbers beside its weights."""

from __future__ import annotations

import json
import shutil

import pytest

from lrft.model.decisive import decisive_fields, template_sum, tokenizer_sums
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.sections import ModelSection
from lrft.registry.templates import named_template


@pytest.fixture
def base(tiny, tmp_path):
    return shutil.copytree(tiny(), tmp_path / "base")


def fields_of(base):
    return decisive_fields(ModelSection(name=str(base)))


def sums_of(base):
    return tokenizer_sums(*load_tokenizer(ModelSection(name=str(base))))


def edit(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_nested_keys_are_dotted_and_who_wrote_the_file_is_left_out(base):
    found = fields_of(base)
    assert found["rope_parameters.rope_theta"] == 10000.0 and found["hidden_size"] == 64
    edit(
        base / "config.json",
        transformers_version="1",
        _name_or_path="x",
        torch_dtype="float16",
        use_cache=False,
    )
    assert fields_of(base) == found


def test_code_that_a_model_brings_counts_by_its_file(base):
    (base / "modeling_own.py").write_text("a = 1\n")
    plain = fields_of(base)
    assert not [key for key in plain if key.startswith("code")]
    edit(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    before = fields_of(base)
    (base / "modeling_own.py").write_text("a = 2\n")
    now = fields_of(base)
    assert [key for key in now if now[key] != before[key]] == ["code modeling_own.py"]


def test_the_tokens_that_end_an_answer_are_a_part_of_the_tokenizer(base):
    before = sums_of(base)
    edit(base / "generation_config.json", eos_token_id=[2, 5])
    now = sums_of(base)
    assert [part for part in now if now[part] != before[part]] == ["stop_tokens"]


def test_how_a_tokenizer_was_last_called_is_no_part_of_it(base):
    tokenizer, stops = load_tokenizer(ModelSection(name=str(base)))
    before = tokenizer_sums(tokenizer, stops)
    tokenizer("a b c", truncation=True, max_length=2)
    tokenizer(["a", "b c"], padding=True)
    assert tokenizer_sums(tokenizer, stops) == before


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "post_processor", "decoder"])
def test_every_part_of_a_serialised_tokenizer_counts(base, part):
    before = sums_of(base)
    others = {
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {"type": "Fuse"},
    }
    edit(base / "tokenizer.json", **{part: others[part]})
    now = sums_of(base)
    assert [name for name in now if now[name] != before[name]] == [part]


PLAIN_BEFORE = """\
{#- Words alone, for models without special tokens: a line a message, and the end-of-text token after every answer. \
stop: eos -#}
{{- bos -}}
{%- for message in messages -%}
  {{- message.role | capitalize -}}{{- ': ' -}}{{- message.content -}}
  {%- if message.role == 'assistant' -%}{{- stop -}}{%- endif -%}
  {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"""


class InPython:
    """A tokenizer without a backend that can be written out."""

    bos_token_id, eos_token_id, pad_token_id, unk_token = 1, 2, 0, None
    added_tokens_decoder: dict = {}
    chat_template = None

    def __init__(self, **vocabulary):
        self.vocabulary = vocabulary

    def get_vocab(self):
        return self.vocabulary


def test_a_tokenizer_in_python_is_its_class_and_its_vocabulary():
    first, other = (tokenizer_sums(InPython(a=0, b=number), {2}) for number in (1, 2))
    assert [part for part in first if first[part] != other[part]] == ["vocab"]
    assert tokenizer_sums(InPython(b=1, a=0), {2}) == first
    assert tokenizer_sums(type("Another", (InPython,), {})(a=0, b=1), {2})["class"] != first["class"]
    assert template_sum(InPython()) is None


def test_runs_that_began_with_the_earlier_text_of_a_named_template_go_on():
    written = InPython()
    sums = []
    for body in (named_template("plain"), PLAIN_BEFORE):
        written.chat_template = f"{{%- set stop = eos_token -%}}\n{body}"
        sums.append(template_sum(written))
    assert named_template("plain") != PLAIN_BEFORE and sums[0] == sums[1]
    written.chat_template += " "
    assert template_sum(written) != sums[0]
