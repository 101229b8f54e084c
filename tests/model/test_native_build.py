"""Building the kernels: once, by whatever compiler there is, and a run without one goes on and says why."""

import shutil
import stat

import pytest
import torch

from lrft.build import native
from lrft.model.gguf import cache_root
from lrft.ops.native import Kernels


@pytest.fixture
def fresh():
    """Before what a test changes, so that it is put back by the time they are found again for the tests after it."""
    native.native_kernels.cache_clear()
    yield native.native_kernels
    native.native_kernels.cache_clear()
    native.native_kernels(cache_root().parent / "compiled")


@pytest.fixture
def one_source(monkeypatch, tmp_path):
    """One small source in the place of all, since compilers take seconds."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" void lrft_one(float* x, int) { *x = 1; }\n')
    monkeypatch.setattr(native, "SOURCES", folder)
    return folder / "one.cpp"


def compilers():
    if not native.has_compiler():
        pytest.skip("no C++ compiler here")


def one(kernels):
    x = torch.zeros(1)
    kernels("one", x)
    return float(x)


def test_what_was_built_is_kept_and_made_again_where_it_is_damaged_or_another_could_have_written_it(
    fresh, one_source, tmp_path, monkeypatch
):
    compilers()
    kernels = fresh(tmp_path / "cache")
    assert isinstance(kernels, Kernels) and one(kernels) == 1
    (built,) = (tmp_path / "cache").iterdir()

    compiled, run = [], native._run

    def counted(command):
        compiled.append(command)
        return run(command)

    monkeypatch.setattr(native, "_run", counted)

    def times_compiled():
        compiled.clear()
        fresh.cache_clear()
        assert one(fresh(tmp_path / "cache")) == 1
        return sum("--version" not in command for command in compiled)

    assert times_compiled() == 0
    built.chmod(0o666)
    assert times_compiled() == 1 and not built.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    elsewhere = tmp_path / "elsewhere.so"
    shutil.move(built, elsewhere)
    built.symlink_to(elsewhere)
    assert times_compiled() == 1 and not built.is_symlink()
    damaged = tmp_path / "damaged"  # of another name, since what is loaded once is not read again
    damaged.mkdir()
    (damaged / built.name).write_bytes(b"no library")
    compiled.clear()
    assert one(fresh(damaged)) == 1 and len(compiled) == 2


def test_another_source_or_other_flags_are_another_library(fresh, one_source, tmp_path, monkeypatch):
    compilers()
    fresh(tmp_path / "cache")
    one_source.write_text(one_source.read_text().replace("= 1", "= 1 + 1"))
    fresh.cache_clear()
    assert one(fresh(tmp_path / "cache")) == 2
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-DOTHER"))
    fresh.cache_clear()
    fresh(tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("compiler", [*native.COMPILERS, "gcc", "cc", "clang"])
def test_a_compiler_by_any_of_its_names_links_what_cpp_needs(
    fresh, one_source, tmp_path, monkeypatch, compiler
):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    one_source.write_text(
        "#include <cmath>\n#include <vector>\n"
        'extern "C" void lrft_one(float* x, int n) { std::vector<float> y(n + 1); *x = y.at(n) + std::exp(*x); }\n'
    )
    monkeypatch.setenv("CXX", compiler)
    kernels = fresh(tmp_path / "cache")
    assert isinstance(kernels, Kernels), kernels
    assert one(kernels) == 1


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        (None, "there is no C++ compiler, by the name of c++, g++, clang++ or in CXX"),
        ("/no/such/compiler", "No such file"),
        ("false", "false: it ended with 1"),
        ("'", "No closing quotation"),
    ],
)
def test_why_there_are_none(fresh, one_source, tmp_path, monkeypatch, compiler, why):
    if compiler is None:
        monkeypatch.setattr(native.shutil, "which", lambda name: None)
        monkeypatch.delenv("CXX", raising=False)
    else:
        monkeypatch.setenv("CXX", compiler)
    assert why in fresh(tmp_path / "cache")
    assert native.has_compiler() is (compiler == "false")


def test_a_source_that_does_not_compile_leaves_nothing(fresh, one_source, tmp_path):
    compilers()
    one_source.write_text("this is no program\n")
    assert "one.cpp" in fresh(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written(fresh, one_source, tmp_path):
    compilers()
    (tmp_path / "cache").write_text("a file")
    assert str(tmp_path / "cache") in fresh(tmp_path / "cache")


def test_a_training_without_a_compiler_says_so_and_goes_on(fresh, tiny, tmp_path, monkeypatch):
    from lrft.build.adapt import adapt
    from lrft.recipe.load import load_recipe

    given = [f"model.name={tiny()}", "train.device=cpu", "quantization=none"]
    adaptation = adapt(load_recipe("recipes/smoke/lora.yaml", given).recipe)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    fresh.cache_clear()  # of what the adapting has found
    assert native.kernels_of(adaptation) is None
    assert adaptation.notes[-1].startswith("attention, norms and gates go by parts, steps take longer (")


@pytest.mark.parametrize(("family", "said"), [("llama", 0), ("gemma2", 1)])
def test_what_a_step_does_without_the_kernels_is_said_once(tiny, tmp_path, capsys, family, said):
    from lrft.api.training.train import train
    from lrft.recipe.load import load_recipe

    compilers()
    found = native.native_kernels(cache_root().parent / "compiled")
    assert isinstance(found, Kernels), found
    given = [f"model.name={tiny(family)}", "train.device=cpu", "quantization=none", "train.max_steps=2"]
    train(load_recipe("recipes/smoke/lora.yaml", given), tmp_path / "run")
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if "by parts" in line]
    assert lines == ["attention: by parts, steps take longer (its scores have a soft cap)"] * said, told
