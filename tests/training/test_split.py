"""Split learning: what crosses the link, what trains on which side, which rows are kept, and what is refused."""

from __future__ import annotations

import json
import shutil
from math import ceil

import pytest
import torch

from lrft.api.training.federate import federate
from lrft.build.adapt import adapt
from lrft.build.aggregating import check_whole, hiding
from lrft.build.clients import Clients
from lrft.build.dataset import read_text
from lrft.build.hardest import hardest, kept_of, row_errors
from lrft.build.reach import InTurn
from lrft.build.shares import shares_of
from lrft.build.trained_values import read
from lrft.core.aggregate import Turn, bytes_of
from lrft.data.collate import collate
from lrft.model.split import Link
from lrft.ops.metric_noise import metric_noise
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from lrft.training.device import make_accelerator
from tests.each import each
from tests.training.unbroken import goes_on_unbroken

SPLIT = [
    "~train.max_steps",
    "~train.eval_every",
    "quantization=none",
    "model.weights=random",
    "adapter={method: prompt_tuning, tokens: 3}",
    "trainable.weights=['model.layers.3.*', model.norm.weight]",
    "data.train.limit=16",
    "train.packing=false",
    "train.gradient_accumulation=1",
    "train.keep_last=9",
    "federate={clients: 2, rounds: 2, local_epochs: 1, partition: even, aggregate: {method: sfprompt}}",
]


@pytest.fixture
def four(recipe_file, tiny, tmp_path):
    """A recipe on the tiny model with four blocks, whose weights are drawn."""
    folder = tmp_path / "four"
    shutil.copytree(tiny(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4, "layer_types": None}))
    file = recipe_file("float32")

    def make(*overrides):
        return load_recipe(file, [f"model.name={folder}", *SPLIT, *overrides])

    return make


@pytest.fixture
def clients(four):
    def make(*overrides):
        recipe = four(*overrides).recipe
        text = read_text(recipe)
        adaptation = adapt(recipe, text=text)
        return Clients(recipe, text, adaptation, shares_of(recipe, text), make_accelerator("cpu", "float32"))

    return make


def batch_of(clients, rows):
    return collate(
        [[clients.text.train[row]] for row in rows], clients.text.pad_id, None, [[r] for r in rows]
    )


def grads(model, infos, batch):
    for info in infos:
        info.param.grad = None
    hidden = model.hidden(batch)
    hidden.square().sum().backward()
    return hidden.detach(), {info.name: info.param.grad.clone() for info in infos}


def test_split_passes_are_unsplit_ones_and_four_messages_of_hidden_states(clients):
    made = clients()
    model, batch, link = made.adaptation.model, batch_of(made, [0, 1, 2]), Link()
    whole, plain = grads(model, made.infos, batch)
    with made.split.linked(link):
        cut, through = grads(model, made.infos, batch)
    assert torch.equal(whole, cut) and all(torch.equal(plain[name], through[name]) for name in plain)
    rows, length = batch.input_ids.shape
    one = rows * (length + 3) * whole.shape[-1] * 4  # with the three positions of the prompt, in float32
    assert (link.up, link.down) == (2 * one, 2 * one)  # states and their gradients, each way
    assert torch.equal(model.hidden(batch), whole) and (link.up, link.down) == (2 * one, 2 * one)


def test_without_anything_trained_before_the_body_no_gradient_comes_back(clients):
    made = clients("adapter=null", "init=null", "trainable.weights=['model.layers.3.*']")
    link = Link()
    with made.split.linked(link):
        whole, _ = grads(made.adaptation.model, made.infos, batch_of(made, [0]))
    assert (link.up, link.down) == (whole.numel() * 4, whole.numel() * 4)


def test_around_the_body_is_the_model_of_the_other_blocks(clients):
    made = clients()
    model, batch = made.adaptation.model, batch_of(made, [0, 1])
    blocks = model.hf.model.layers
    with made.split.bypassed():
        found = model.hidden(batch)
    whole, model.hf.model.layers = model.hidden(batch), torch.nn.ModuleList([blocks[0], blocks[3]])
    depth, model.hf.config.num_hidden_layers = model.hf.config.num_hidden_layers, 2
    expected = model.hidden(batch)
    model.hf.model.layers, model.hf.config.num_hidden_layers = blocks, depth
    assert torch.equal(found, expected) and not torch.allclose(found, whole)
    assert torch.equal(model.hidden(batch), whole), "the body is not back"


def test_a_round_moves_both_ends_and_never_the_body_and_its_bytes_are_the_formula(clients):
    made = clients("federate.aggregate.local_epochs=0.5")
    model, start = made.adaptation.model, read(made.infos)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    found = made.train(Turn(0, 0), start)
    assert all(not torch.equal(found.tensors[name], value) for name, value in start.items())
    trained = {id(info.param) for info in made.infos}
    frozen = {name for name, value in model.hf.named_parameters() if id(value) not in trained}
    assert any("layers.1." in name for name in frozen) and any("layers.2." in name for name in frozen)
    after = model.hf.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert all(model.hf.get_parameter(name).grad is None for name in frozen)
    rows = len(made.shares[0])
    assert len(found.losses) == ceil(kept_of(rows, 0.5) / 2)  # the kept rows alone, two a step
    assert made.steps(0) == len(found.losses) + ceil(ceil(rows / 2) / 2)  # and half a pass around the body


def test_bytes_of_a_run_are_messages_and_crossings_of_the_kept_rows(four, tmp_path):
    """4 positions x d numbers of every kept row, padded as its micro-batch is, beside prompt and tail both ways."""
    loaded = four("train.batch_size=1", "federate.aggregate.local_epochs=0", "federate.rounds=1")
    federate(loaded, tmp_path / "run")
    recipe = loaded.recipe
    text = read_text(recipe)
    made = Clients(
        recipe, text, adapt(recipe, text=text), shares_of(recipe, text), make_accelerator("cpu", "float32")
    )
    start, width = read(made.infos), made.adaptation.model.hf.config.hidden_size
    positions = 0
    for client in (0, 1):
        for info in made.infos:
            info.param.data.copy_(start[info.name])
        share = made.shares[client]
        for place in made._hardest(client, 0.5):
            positions += len(text.train[share[place]].input_ids) + 3
    crossed = 2 * positions * width * 4
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert (line["link_up"], line["link_down"]) == (crossed, crossed)
    assert line["bytes_up"] == line["bytes_down"] == crossed + 2 * bytes_of(start)


def test_noise_is_as_long_as_it_says_and_as_often_in_every_direction():
    drawn = metric_noise(torch.Size((4000, 24)), 3.0, torch.Generator().manual_seed(0))
    length = drawn.norm(dim=-1)
    assert float(length.mean()) == pytest.approx(24 / 3, rel=0.02)
    assert float(length.var()) == pytest.approx(24 / 9, rel=0.1), "no gamma distribution"
    assert float(drawn.mean(0).abs().max()) < 0.15
    shares = drawn.square().mean(0) / drawn.square().mean()
    assert float(shares.min()) > 0.85 and float(shares.max()) < 1.15


def test_with_eta_what_goes_up_is_noisy_and_what_is_scored_is_not(clients):
    made = clients("federate.aggregate.eta=50.0")
    model, batch, sent = made.adaptation.model, batch_of(made, [0, 1]), []
    plain = model.hidden(batch)
    hide = hiding(made.aggregator.split, made.secret, 0, 0)

    def looked_at(hidden):
        sent.append(hide(hidden) - hidden)
        return hidden + sent[-1]

    with made.split.linked(Link(), looked_at):
        found = model.hidden(batch)
    assert not torch.allclose(found, plain) and torch.equal(model.hidden(batch), plain)
    width = plain.shape[-1]
    assert float(sent[0].norm(dim=-1).mean()) == pytest.approx(width / 50, rel=0.05)
    again = hiding(made.aggregator.split, made.secret, 0, 0)(torch.zeros_like(sent[0]))
    torch.testing.assert_close(again, sent[0], atol=1e-5, rtol=1e-4)
    other = hiding(made.aggregator.split, made.secret, 0, 1)(torch.zeros_like(sent[0]))
    assert not torch.allclose(other, again, atol=1e-3)


def test_the_hardest_rows_are_kept_by_the_mean_error_of_their_tokens(clients):
    made = clients()
    model, text, measure = made.adaptation.model, made.text, made.aggregator.error
    rows = text.train[:5]
    found = row_errors(model, rows, measure, 400, text.pad_id)
    model.eval()
    with torch.no_grad():
        for place, row in enumerate(rows):
            batch = collate([[row]], text.pad_id, None, [[0]])
            p = model(batch).flatten(0, 1)[batch.supervised].softmax(-1)
            errors = (p - torch.nn.functional.one_hot(batch.targets, p.shape[-1])).norm(dim=-1)
            assert found[place] == pytest.approx(float(errors.mean()), rel=1e-4)
    order = sorted(range(5), key=lambda place: -found[place])
    assert hardest(model, rows, 0.5, measure, 400, text.pad_id) == sorted(order[:2])
    assert kept_of(5, 0.1) == 1


def test_a_split_federation_learns_and_goes_on_to_the_bit(four, tmp_path):
    loaded = four("federate.rounds=3", "optimizer.lr=0.01", "federate.aggregate={keep: 1.0, eta: 1e4}")
    result = federate(loaded, tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert result["federation"]["bytes_up"] == sum(line["bytes_up"] for line in lines)
    goes_on_unbroken(loaded, tmp_path / "whole", 1, tmp_path / "broken")


@each(
    ("changes", "key", "said"),
    [
        (["federate.aggregate.head=3"], "federate.aggregate", "leave none of the 4"),
        (["trainable.weights=['model.layers.2.*']"], "federate.aggregate", "blocks 1 to 2"),
        (
            ["adapter={method: lora, rank: 2}", "~adapter.tokens", "~trainable.weights"],
            "federate.aggregate",
            "is in the body",
        ),
        (["train.packing=true", "model.attention=segmented"], "train.packing", "chosen one by one"),
        (["model.activation_checkpointing=true"], "model.activation_checkpointing", "not computed as one"),
    ],
)
def test_what_cannot_be_split_is_refused_before_the_first_round(changes, key, said, four, tmp_path):
    with pytest.raises(RecipeError, match=said) as refused:
        federate(four(*changes), tmp_path / "run")
    assert key in [problem.key for problem in refused.value.problems]


def test_neither_noise_nor_flower_goes_with_it(four, clients):
    with pytest.raises(RecipeError, match="no noise is on"):
        four("privacy={noise: 1.0}")
    made = clients()
    with pytest.raises(RecipeError, match="hidden states in every step"):
        check_whole(made.aggregator, made.recipe)


def test_a_model_that_is_whole_has_no_link(recipe_file):
    recipe = load_recipe(
        recipe_file("float32"),
        ["~train.max_steps", "federate={clients: 2, rounds: 1, local_steps: 1, partition: even}"],
    ).recipe
    text = read_text(recipe)
    made = Clients(
        recipe, text, adapt(recipe, text=text), shares_of(recipe, text), make_accelerator("cpu", "float32")
    )
    assert made.split is None
    (answer,) = InTurn(made, made.aggregator).ask([Turn(0, 0)], read(made.infos))
    assert answer.numbers.link_up == answer.numbers.link_down == 0
