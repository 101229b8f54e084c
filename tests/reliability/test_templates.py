"""A chat template is a program of a stranger's: it renders as in transformers, or is stopped within its limits."""

import resource
import threading
import time
from datetime import date

import pytest

from lrft.data import template_budget
from lrft.data.as_transformers import _bounded
from lrft.data.chat import ChatTemplate
from lrft.registry.errors import DataError
from lrft.registry.templates import named_template, template_names

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "What is é?"},
    {
        "role": "assistant",
        "content": "A letter.\n",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
    },
]
LOOP = "{% for i in range(99999) %}"
STATE = "{% set ns = namespace(s='aaaaaaaaaa', l=['a']) %}"
NESTED = STATE + "{% for i in range(99) %}{% set ns.l = VALUE %}{% endfor %}WRITTEN"


class Spoken:
    """What of a tokenizer a template is rendered with."""

    added_tokens_decoder = {}
    all_special_tokens = []

    def __init__(self, template):
        self.chat_template = template

    def convert_ids_to_tokens(self, ids):
        return []

    def apply_chat_template(self, conversation, tools=None, tokenize=False, add_generation_prompt=False):
        from transformers.utils.chat_template_utils import render_jinja_template

        return render_jinja_template(
            conversation, tools, chat_template=self.chat_template, add_generation_prompt=add_generation_prompt
        )[0]


def rendered(template, messages=TALK):
    return ChatTemplate(Spoken(template), set(), date(2000, 1, 1)).render(messages)


def nested(value, written="{{ ns.l }}"):
    return NESTED.replace("VALUE", value).replace("WRITTEN", written)


EXPLOSIVE = {
    "a text times a number": "{{ 'a' * 10**9 }}",
    "a list times a number": "{{ ['a'] * 10**9 }}",
    "powers": "{{ (2**15000) ** 9 }}",
    "a width in %": "{{ '%1000000000d' % 1 }}",
    "a width beside %": "{{ '%*d' % (1000000000, 1) }}",
    "a width in format": "{{ '{:1000000000}'.format(1) }}",
    "a width by another field": "{{ '{:{}}'.format(1, 10**9) }}",
    "a width in format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "center of a constant, which jinja would compute when it compiles": "{{ 'a'|center(99999999)|length }}",
    "map of center": "{{ ['a']|map('center', 1000000000)|list }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "ljust in a loop, where jinja adds arguments": LOOP
    + "{{ ('\t' * 9999).expandtabs(tabsize=99999) }}{% endfor %}",
    "indent": "{{ ('a\n' * 99999)|indent('b' * 99999) }}",
    "wordwrap": "{{ ('a ' * 40000)|wordwrap(1, wrapstring='x' * 99999) }}",
    "replace": "{{ ('a' * 99999)|replace('', 'b' * 99999) }}",
    "the method replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "join": "{{ range(99999)|join('b' * 99999) }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "tojson": "{{ [[1, 2], [3]]|tojson(indent=1000000000) }}",
    "round": "{{ 1.5|round(1000000000, 'ceil') }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "doubling by +": STATE + "{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by ~": STATE + "{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "many copies in one ~": "{% set b = 'a' * 3000000 %}{{ " + " ~ ".join(["b"] * 300) + " }}",
    "a list of itself twice": nested("[ns.l, ns.l]"),
    "a tuple of itself twice": nested("(ns.l, ns.l)", "{{ ns.l|string }}"),
    "a dict of itself twice": nested("dict(a=ns.l, b=ns.l)", "{{ ns.l|tojson }}"),
    "a namespace of itself twice": nested("namespace(a=ns.l, b=ns.l)", "{{ '%s' % ns.l }}"),
    "a list that grows without a literal": nested("(ns.l * 2)|batch(2)|list"),
    "output": "{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}",
    "output of one value": "{% set b = 'a' * 1000000 %}{% set x %}"
    + LOOP
    + "{{ b }}{% endfor %}{% endset %}",
    "output of a macro": "{% macro f() %}"
    + "a" * 9999
    + "{% endmacro %}{% for i in range(99999) %}{{ f() }}{% endfor %}",
    "a number of 3,000,000 bits": "{{ ('1' * 3000000)|int(base=2) }}",
    "a long template": "a" * 500_000,
    "loops in loops in Python": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
}


@pytest.mark.parametrize("kind", EXPLOSIVE)
def test_a_template_that_explodes_is_stopped_before_it_does(kind):
    began, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="the chat template is stopped: it ") as refused:
        rendered(EXPLOSIVE[kind])
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200
    assert time.thread_time() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10  # KiB


ENDLESS = {
    "loops": "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "loops that take nothing": LOOP + "{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "filters without a loop": "{% for i in range(99999) %}{{ range(99999)|max }}{% endfor %}",
    "a test of every item": "{{ range(99999)|select('in', range(99999)|list)|list }}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_a_template_that_does_not_end_is_ended(monkeypatch, kind, where):
    monkeypatch.setattr(template_budget, "SECONDS", 0.1)
    found = []

    def attempt():
        began = time.thread_time()
        with pytest.raises(DataError, match="the chat template is stopped: it computes for more than"):
            rendered(ENDLESS[kind])
        found.append(time.thread_time() - began)

    if where == "main thread":
        attempt()
    else:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert found and found[0] < 1.5


BROKEN = {
    "{% for %}": "line 1 of the chat template is no Jinja: Expected an expression",
    "a\n{{ messages": "line 2 of the chat template is no Jinja: unexpected end",
    "{{ 1|nothing }}": "No filter named 'nothing'",
    "{{ x.y }}": "'x' is undefined",
    "{{ raise_exception('no\nway') }}": "refuses the conversation: no way",
    "{{ raise_exception(none) }}": "refuses the conversation",
    "{{ raise_exception('a' * 3000000) }}": "refuses the conversation: a+\\.\\.\\.$",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}": "no loader",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ (1).to_bytes(1000000000, 'big') }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{{ range(10**9) }}": "blocks ranges",
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "{{ 10.0 ** 400 }}": "OverflowError",
    "{{ 'a'() }}": "TypeError",
    "{{ '\ud800' }}": "UnicodeEncodeError",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "calls itself without end",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}": "calls itself without end",
}


@pytest.mark.parametrize("template", BROKEN)
def test_whatever_fails_in_a_template_is_one_sentence(template):
    for messages in (TALK, ()):
        with pytest.raises(DataError, match=BROKEN[template]) as refused:
            rendered(template, messages)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_within_the_limits_a_template_writes_what_it_writes_in_transformers():
    from transformers.utils.chat_template_utils import _cached_compile_jinja_template

    bodies = [named_template(name) for name in template_names()]
    bodies += [
        "{{ messages|tojson(indent=2) }}{{ messages[1:]|length }}{{ 'a' ~ 1 ~ none }}{{ ['x', 1.0, true] }}",
        "{{ '%05.1f|%s' % (1.25, 'a') }}{{ '{:>8}|{!r}'.format('a', 'b') }}{{ 'a'|center(9) }}|{{ 'a\nb'|indent(2) }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index * 2 %}"
        "{% if loop.last %}{% break %}{% endif %}{{ ns.n }}{{ m.content.split(' ')|join('_')|upper }}{% endfor %}",
        "{% macro f(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{{ f('&') }}{% call f(2) %}in{% endcall %}",
        "{% for m in messages|selectattr('role', 'in', ['user'])|map(attribute='content') %}{{ m|e }}{% endfor %}",
        "{{ dict(a=1) }}{{ {'b': (1, 2)}.items()|list }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 8 }}{{ -3 * 'a' }}{{ [1] * 2 }}",
        "{% generation %}{{ 'abc'[::-1] }}{% endgeneration %}{% filter title %}hello there{% endfilter %}",
    ]
    for body in bodies:
        source = "{%- set bos = '<s>' -%}{%- set stop = '</s>' -%}" + body
        given = {"messages": TALK[1:], "tools": None, "documents": None, "add_generation_prompt": True}
        expected = _cached_compile_jinja_template(source).render(**given)
        assert _bounded(source).render(**given) == expected != ""


def test_a_long_conversation_is_no_hostile_one():
    talk = [{"role": ("user", "assistant")[turn % 2], "content": "word " * 20} for turn in range(2000)]
    users = "{{ (messages|selectattr('role', 'equalto', 'user')|list)|length }}"
    slow = "{% for m in messages %}" + users + "{{ m.content }}{% endfor %}"
    assert len(rendered("{{ messages|tojson }}", talk)) > 200_000
    assert rendered(slow, talk[:300]).count("word") == 300 * 20
