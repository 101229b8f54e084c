"""FFA-LoRA's own statements."""

from __future__ import annotations

import torch

from lrft.core.aggregate import bytes_of
from tests.methods.aggregate.replies import LLAMA_3B, held_of, lora, made, replies_of, trained_by


def only_B(infos):
    return [info for info in infos if info.role == "lora_B"]


def test_the_average_of_the_changes_is_the_change_of_the_average():
    infos = lora()
    frozen = {info.site: info.param.detach().double() for info in infos if info.role == "lora_A"}
    held = held_of(only_B(infos))
    trained, rows = trained_by(held, 5, size=1.0), [3, 1, 4, 1, 5]
    server = made("ffa_lora", only_B(infos))
    found = server.aggregate(held, replies_of(server, held, trained, rows), 0)
    for site, A in frozen.items():
        mean = sum(p / 14 * one[f"{site}.B"].double() @ A for p, one in zip(rows, trained, strict=True))
        torch.testing.assert_close(found[f"{site}.B"].double() @ A, mean, atol=1e-6, rtol=1e-6)


def test_a_round_sends_B_alone():
    """24,772,608 numbers, Llama-3.2-3B at rank 32; the printed half of LoRA's would need in = out."""
    shapes = [(out, fan_in) for out, fan_in, count in LLAMA_3B for _ in range(28 * count)]
    infos = only_B(lora(32, shapes, device="meta"))
    assert bytes_of(made("ffa_lora", infos).down(held_of(infos), None)) == 4 * 24_772_608
