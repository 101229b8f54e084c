"""Windows over long documents: every token is learnt once, after what stands before it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrft.data.encode import encode_each
from lrft.data.encoded import Drawn
from lrft.data.prepare import prepare
from lrft.data.rows import Rows
from lrft.data.windows import windows
from lrft.registry.errors import DataError


def drawn(length, lead):
    """Tokens 0, 1, ..., of which all but the first and the lead are learnt."""
    return Drawn(
        list(range(length)), [k > 0 and k >= lead for k in range(length)], lead, 0, False, False, lead
    )


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 90), lead=st.integers(0, 2), room=st.integers(2, 20), data=st.data())
def test_every_token_is_learnt_once_and_follows_the_one_before_it(length, lead, room, data):
    lead = min(lead, length)
    stride = data.draw(st.integers(1, room - 1))
    document = drawn(length, lead)
    made = windows(document, room + lead, stride)
    learnt = []
    for window in made:
        assert len(window.input_ids) <= room + lead and window.length == len(window.input_ids)
        for place, wanted in enumerate(window.supervised):
            if wanted:
                assert place > 0 and window.input_ids[place - 1] == window.input_ids[place] - 1
                learnt.append(window.input_ids[place])
        assert window.input_ids[:lead] == list(range(lead)), "each begins as the document does"
    assert learnt == [k for k, wanted in enumerate(document.supervised) if wanted]
    assert [window.goes_on for window in made] == [True] * (len(made) - 1) + [False]
    assert len(made) == 1 or all(any(window.supervised) for window in made)


def test_windows_begin_a_stride_apart_and_read_the_overlap():
    made = windows(drawn(10, 0), 4, 2)
    assert [window.input_ids for window in made] == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]]
    assert [sum(window.supervised) for window in made] == [3, 2, 2, 2]
    assert [window.read_again for window in made] == [0, 2, 2, 2]


def test_windows_that_would_not_overlap_are_refused():
    with pytest.raises(DataError, match=r"data\.stride: 3 leaves windows of 4 tokens.*at most 2"):
        windows(drawn(10, 1), 4, 3)


@pytest.mark.parametrize("bos", [False, True])
def test_a_document_is_rows_of_one_place_and_the_gate_passes_them(word_tokenizer, renderer, bos):
    text = "what is two plus two ? four five six you are kind and now"
    rows = Rows([{"text": "two plus two"}, {"text": text}], "texts.jsonl", "", lines=[1, 2])
    made = renderer(word_tokenizer(bos=bos), "text", 6, "windows")
    found = prepare(rows, made)
    found.report.check(False, "windows")
    assert list(found.of) == [0, *[1] * (len(found.encoded) - 1)] and len(found.encoded) > 4
    assert {found.rows.where(k) for k in range(1, len(found.encoded))} == {"texts.jsonl:2"}
    whole = renderer(word_tokenizer(bos=bos), "text").encode(rows[1])
    assert sum(one.targets for one in found.encoded[1:]) == whole.targets
    assert found.report.empty_answers == found.report.without_stop == found.report.too_long == 0


def test_a_row_with_a_prompt_is_not_cut_into_windows(word_tokenizer, renderer):
    rows = Rows([{"prompt": "two plus two", "completion": " is four five six"}], "r.jsonl", "", lines=[4])
    made = renderer(word_tokenizer(), "prompt_completion", 5, "windows")
    with pytest.raises(DataError, match=r"^r\.jsonl:4: data\.too_long: windows are for formats"):
        encode_each(rows, made)
