"""NEFTune: as large as its document says, drawn by step and micro-batch alone, in training alone."""

from __future__ import annotations

import pytest
import torch

from lrft.api.training.train import train
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.model.load import load_model
from lrft.model.noise import add_noise, noise
from lrft.recipe.load import load_recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError
from tests.training.conftest import RECIPE
from tests.training.conftest import ROOT as REPOSITORY
from tests.training.unbroken import goes_on_unbroken, losses

LENGTHS = [(30,), (5, 60), (100,)]


def rows(lengths, length=None) -> Batch:
    made = [[Encoded([7] * n, [False] + [True] * (n - 1)) for n in row] for row in lengths]
    return collate(made, 0, length, [list(range(len(row))) for row in made])


def bounds(batch, drawn):
    """Largest and mean absolute noise of each document, times sqrt(L d)."""
    found = []
    for row, start, end in batch.documents:
        part = drawn[row, start:end] * ((end - start) * drawn.shape[-1]) ** 0.5
        found.append((float(part.abs().max()), float(part.abs().mean())))
    return found


@pytest.mark.parametrize("length", [None, 128])
def test_every_document_has_the_noise_of_its_own_length(length):
    batch = rows(LENGTHS, length)
    drawn = noise(batch, torch.zeros(*batch.input_ids.shape, 512), 5.0, seed=3)
    for largest, mean in bounds(batch, drawn):
        assert 4.9 < largest <= 5.0 and mean == pytest.approx(2.5, rel=0.05)
    assert abs(float(drawn.mean())) < 1e-4
    inside = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    for row, start, end in batch.documents:
        inside[row, start:end] = True
    assert not drawn[~inside].any() and (~inside).any()


def test_rows_that_are_joined_to_one_have_the_noise_of_their_documents():
    joined = rows([(30, 5, 60, 100)])
    flat = noise(
        joined, torch.zeros(1, 195, 256), 2.0, seed=1
    )  # as kernels that take one row are given it, too
    assert [round(largest, 1) for largest, _ in bounds(joined, flat)] == [2.0] * 4
    several = rows(LENGTHS, 100)
    assert noise(several, torch.zeros(1, 300, 256), 2.0, 1).shape == (1, 300, 256)


def test_draws_follow_the_seed_and_touch_no_other_generator():
    batch, embedded = rows(LENGTHS), torch.zeros(3, 100, 8)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (noise(batch, embedded, 5.0, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())
    generator = torch.Generator().manual_seed(1)
    assert not torch.allclose(one[0, 0], (2 * torch.rand(8, generator=generator) - 1) * one[0, 0].abs().max())


@pytest.fixture(scope="module")
def noisy(tiny):
    model = load_model(ModelSection(name=str(tiny()), dtype="float32"))
    add_noise(model, 5.0)
    return model


def test_only_training_hears_it(noisy):
    batch = rows(LENGTHS)
    embed = noisy.hf.get_input_embeddings()
    noisy.eval()
    clean = embed(batch.input_ids)
    with computing(batch, seed=1):
        assert torch.equal(embed(batch.input_ids), clean)
        noisy.train()
        assert torch.equal(embed(batch.input_ids), clean + noise(batch, clean, 5.0, 1))
        assert not torch.equal(embed(batch.input_ids), clean)
    with computing(batch):
        assert torch.equal(embed(batch.input_ids), clean)  # calibration
    assert torch.equal(embed(batch.input_ids), clean)
    noisy.eval()


@pytest.fixture
def written(tiny, tmp_path):
    path = tmp_path / "tiny.yaml"
    data = REPOSITORY / "recipes" / "data" / "quickstart"
    path.write_text(RECIPE.format(model=tiny(), dtype="float32", data=data))
    short = [
        "quantization=none",
        "train.max_steps=3",
        "train.save_every=1",
        "train.keep_last=9",
        "~train.eval_every",
    ]
    return lambda *more: load_recipe(path, [*short, *more])


def test_a_run_with_noise_resumes_unbroken_and_is_another(written, tmp_path):
    loaded = written("train.neftune=5")
    train(loaded, tmp_path / "noisy")
    train(written(), tmp_path / "plain")
    assert losses(tmp_path / "noisy")[0] != losses(tmp_path / "plain")[0]
    goes_on_unbroken(loaded, tmp_path / "noisy", 1, tmp_path / "broken")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer=mezo", "train.clip=null"], "compares losses without any noise"),
        (["adapter={method: prompt_tuning}"], "virtual tokens"),
        (["model.compile=true", "train.packing=true"], "cannot be compiled"),
    ],
)
def test_where_it_could_not_be_it_is_refused(written, tmp_path, overrides, words):
    with pytest.raises(RecipeError, match=words):
        train(written("train.neftune=5", *overrides), tmp_path / "run")
