"""Every number that the head of a GGUF file holds is compared with what the file can be, before a library reads it."""

from __future__ import annotations

import random

import pytest

from lrft.files.gguf import check_gguf_file
from lrft.registry.errors import DamagedFile
from tests.tiny_gguf import write_gguf

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, tiny())
    return path


def test_a_whole_file_passes(whole):
    check_gguf_file(whole, gguf.GGML_QUANT_SIZES)


def test_every_length_count_and_offset_is_compared(whole, tmp_path):
    """What changes where something is, or how much of it, is seen; a value alone is another model's."""
    from tests.reliability.hostile_bases import gguf_places

    content = whole.read_bytes()
    places = [
        (name, at, size)
        for name, at, size in gguf_places(content)
        if name.startswith(("magic", "version", "tensors", "length", "dimension", "offset", "inner", "count"))
    ]
    path, unseen = tmp_path / "model.gguf", []
    for name, at, size in places:
        for number in (2**31 - 1, 2**63 - 1):
            changed = bytearray(content)
            changed[at : at + size] = number.to_bytes(8, "little")[:size]
            path.write_bytes(changed)
            try:
                check_gguf_file(path, gguf.GGML_QUANT_SIZES)
                unseen.append((name, number))
            except DamagedFile as error:
                assert str(path) in str(error) and "\n" not in str(error)
    assert len(places) > 100 and unseen == []


def test_a_file_that_is_cut_anywhere_is_torn(whole, tmp_path):
    content, draw, path = whole.read_bytes(), random.Random(0), tmp_path / "model.gguf"
    for _ in range(50):
        path.write_bytes(content[: draw.randrange(len(content))])
        with pytest.raises(DamagedFile, match=r"is torn|is no GGUF|more than its"):
            check_gguf_file(path, gguf.GGML_QUANT_SIZES)


@pytest.mark.parametrize("offset", [0, 2**40])
def test_data_that_two_tensors_would_share_is_refused(whole, tmp_path, offset):
    from tests.reliability.hostile_bases import gguf_places

    content = bytearray(whole.read_bytes())
    at = [at for name, at, _ in gguf_places(bytes(content)) if name.startswith("offset")][3]
    content[at : at + 8] = offset.to_bytes(8, "little")
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="begins at"):
        check_gguf_file(path, gguf.GGML_QUANT_SIZES)
