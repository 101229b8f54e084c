"""A Modelfile says the chat template that training saw, or is refused: both are rendered on conversations."""

from __future__ import annotations

from datetime import date

import pytest
from transformers import AutoTokenizer

from lrft.data.chat import ChatTemplate
from lrft.export import go_template
from lrft.export.modelfile import modelfile, stops_of, template_of, translate
from lrft.registry.errors import UsageError

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
TRIMS = CHATML.replace("message['content']", "message['content'] | trim")
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}"
    "{% else %}{{ raise_exception('only users') }}{% endif %}{% endfor %}"
)
BOS = "{{ bos_token }}" + DEFAULT
BRACES = CHATML.replace("'<|im_end|>'", "'{{end}} <|im_end|>'")

REFUSED = {
    CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"): "takes thoughts out",
    CHATML.replace("message['content']", "message['content'] | upper"): "is not written once, as it is",
    "{{ strftime_now('%d %B %Y') }}" + CHATML: "the day's date",
    CHATML.replace("{% for", "{{ messages | length }}{% for"): "several turns",
    CHATML.replace("'<|im_end|>'", "('<|im_end|>' if not loop.last else '')"): "written differently",
    '{{ \'"""\' }}' + CHATML: "three quotation marks",
    "{% if messages | length > 3 %}{{ 'long ' }}{% endif %}" + CHATML: "several turns",
}


@pytest.fixture
def chat(tiny):
    def get(template: str) -> ChatTemplate:
        tokenizer = AutoTokenizer.from_pretrained(tiny())
        tokenizer.chat_template = template
        return ChatTemplate(tokenizer, {tokenizer.eos_token_id}, date(2026, 11, 28))

    return get


@pytest.mark.parametrize("template", [CHATML, DEFAULT, LLAMA2, BOS, BRACES, TRIMS, NO_SYSTEM])
def test_what_ollama_sends_is_what_training_saw(chat, template):
    ours = chat(template)
    found, _ = translate(ours, "--for ollama")
    user, answer = (
        {"role": "user", "content": "Why {{ so }}?\n\nTell."},
        {"role": "assistant", "content": "It's so."},
    )
    conversations = [[user], [user, answer, user]]
    if template not in (LLAMA2, NO_SYSTEM):
        conversations += [[{"role": "system", "content": "Be."}, *turns] for turns in conversations]
    written = template_of(modelfile([("FROM", "./model.gguf")], found, ["<|im_end|>"]))
    for messages in conversations:
        assert go_template.render(written, messages) == ours.render(messages, prompt=True)


@pytest.mark.parametrize(("template", "why"), REFUSED.items())
def test_a_template_that_does_more_is_refused_with_the_reason(chat, template, why):
    with pytest.raises(UsageError, match=why):
        translate(chat(template), "--for ollama")


def test_what_a_modelfile_cannot_do_is_told(chat):
    assert translate(chat(CHATML), "")[1] == []
    assert "takes white space off" in translate(chat(TRIMS), "")[1][0]
    absorbs = CHATML.replace(
        "message['content']",
        "(message['content'][1:] if message['content'][:1] == ' ' else message['content'])",
    )
    assert "takes white space off" in translate(chat(absorbs), "")[1][0]
    assert "no system messages" in translate(chat(NO_SYSTEM), "")[1][0]


def test_the_template_of_chatml_in_go():
    text = modelfile(
        [("FROM", "llama"), ("ADAPTER", "./adapter.gguf")], "{{ .Prompt }}", ["<|im_end|>", 'a"b']
    )
    assert text == (
        'FROM llama\nADAPTER ./adapter.gguf\nTEMPLATE """{{ .Prompt }}"""\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "a\\"b"\n'
    )
    assert stops_of(text) == ["<|im_end|>", 'a"b']


@pytest.mark.parametrize(
    "template",
    ["{{ .Tools }}", "{{ if .Content }}x{{ end }}", "{{ end }}", "{{ range .Messages }}", "{{ else }}"],
)
def test_what_is_not_read_of_a_template_is_an_error(template):
    with pytest.raises(ValueError):
        go_template.render(template, [{"role": "user", "content": "x"}])
