"""Rows that go by their features are answered and scored in a batch as each is alone, by its own features."""

from __future__ import annotations

import pytest
import torch

from lrft.core.adapted import adapted, adapters_off
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.evaluation.generate import generate
from lrft.evaluation.loglik import continuation_logprobs
from lrft.evaluation.stream import stream
from lrft.export.merge import check_mergeable
from lrft.export.reduce import only_rows_with
from lrft.model.attach import attach, make_plan
from lrft.model.builder import SiteBuilder
from lrft.model.sites import linear_sites
from lrft.registry.axes import ADAPTERS, INITS, QUANTIZERS
from lrft.registry.config import parse_choice
from lrft.registry.errors import NotMergeable, UsageError

ADAPTER = {"method": "flix", "features": {"task": ["a", "b"]}, "rank": 4}
FEATURES = [("task=a",), ("task=b",), (), ("task=a", "task=b")]


@pytest.fixture
def featured(make_subject):
    subject = make_subject()
    config, cls = parse_choice(ADAPTERS, ADAPTER), ADAPTERS.get("flix")
    init = INITS.get("default")(parse_choice(INITS, "default"))
    store = lambda weight, bias: QUANTIZERS.get("none")(weight, bias)  # noqa: E731
    plan = make_plan(linear_sites(subject.model), config)
    attach(subject.model, plan, SiteBuilder(store, cls, config, init))
    for _, site in adapted(subject.model):
        torch.nn.init.normal_(site.adapter.get_parameter("B"), std=0.3)
    return subject


def test_answers_are_those_of_each_row_alone_by_its_own_features(featured, random_prompts):
    prompts = random_prompts([9, 9, 5, 12])
    alone = [generate(featured, [p], 6, (), features=[f])[0] for p, f in zip(prompts, FEATURES, strict=True)]
    assert generate(featured, prompts, 6, (), features=FEATURES) == alone
    same = [generate(featured, [prompts[0]], 6, (), features=[one])[0] for one in FEATURES]
    assert len({tuple(answer) for answer in same}) == 4, "features must matter to prove anything"
    with adapters_off(featured.model):
        bare = generate(featured, [prompts[0]], 6, ())[0]
    assert bare == same[2]


def test_given_answers_are_scored_by_the_features_of_their_row(featured, random_prompts):
    prompts, answers = random_prompts([9, 7, 5, 12]), random_prompts([3, 2, 4, 3])
    found = continuation_logprobs(featured, prompts, answers, features=FEATURES)
    for prompt, answer, features, (total, _) in zip(prompts, answers, FEATURES, found, strict=True):
        ((alone, _),) = continuation_logprobs(featured, [prompt], [answer], features=[features])
        assert total == pytest.approx(alone, abs=1e-3)
        ((other, _),) = continuation_logprobs(featured, [prompt], [answer], features=[("task=b",)])
        assert features == ("task=b",) or other != pytest.approx(alone, abs=1e-3)


@torch.no_grad()
def test_packed_documents_are_scored_as_alone(featured, random_prompts):
    rows = [
        Encoded(ids, [k > 0 for k in range(len(ids))], features=features)
        for ids, features in zip(random_prompts([9, 7, 5, 12]), FEATURES, strict=True)
    ]
    featured.model.eval()
    packed = featured.model.hidden(collate([rows[:2], rows[2:]], 0, 20, [[0, 1], [2, 3]]))
    places = [(0, 0, 9), (0, 9, 16), (1, 0, 5), (1, 5, 17)]
    for one, (row, start, end) in zip(rows, places, strict=True):
        alone = featured.model.hidden(collate([[one]], 0, None, [[0]]))
        torch.testing.assert_close(packed[row, start:end], alone[0], atol=1e-3, rtol=1e-3)


def test_who_has_no_rows_is_refused_while_the_adapter_is_on(featured, random_prompts):
    (prompt,) = random_prompts([5])
    with pytest.raises(UsageError, match="goes by task of a row"):
        generate(featured, [prompt], 2, ())
    with pytest.raises(UsageError, match="goes by task of a row"):
        continuation_logprobs(featured, [prompt], [prompt])
    with pytest.raises(UsageError, match="lrft chat: the adapter goes by task of a row"):
        stream(featured, prompt, 2, print)


@torch.no_grad()
@pytest.mark.parametrize("features", [("task=b",), ("task=a", "task=b")])
def test_the_model_of_one_kind_of_row_is_merged(featured, random_prompts, features):
    model, (prompt,) = featured.model.eval(), random_prompts([9])
    with pytest.raises(
        NotMergeable, match=r"flix cannot be merged .*name one kind of row, such as --features task=a"
    ):
        check_mergeable(model)
    batch = collate([[Encoded(prompt, [True] * 9, features=features)]], 0, None, [[0]])
    before = model.hidden(batch)
    only_rows_with(model, features)
    check_mergeable(model)
    torch.testing.assert_close(model.hidden(batch), before, atol=1e-3, rtol=1e-3)
    for _, site in adapted(model):
        site.base.write(site.merged_weight())
    with adapters_off(model):
        torch.testing.assert_close(model.hidden(batch), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("features", "named"), [(("task=c",), "task=c"), ((), "")])
def test_a_kind_of_row_that_the_adapter_does_not_know_is_not_merged(featured, features, named):
    with pytest.raises(
        UsageError, match=f"--features {named}: the adapter goes by task=a, task=b; write some"
    ):
        only_rows_with(featured.model, features)
