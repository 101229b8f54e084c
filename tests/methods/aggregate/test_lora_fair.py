"""LoRA-FAIR's own statements."""

from __future__ import annotations

import torch

from tests.each import each
from tests.methods.aggregate.replies import held_of, lora, made, products, replies_of, trained_by

SOLVERS = ["cosine", "closed"]


def averaged(name, infos, held, trained, **settings):
    server = made(name, infos, **settings)
    return server.aggregate(held, replies_of(server, held, trained), 0)


def errors(found, trained, infos):
    """|| sum p B A - B' A' || of every site, and the cosine of the two."""
    exact = [products(one, infos) for one in trained]
    result = {}
    for site, value in products(found, infos).items():
        mean = sum(one[site] for one in exact) / len(exact)
        cosine = (value * mean).sum() / value.norm() / mean.norm()
        result[site] = (float((value - mean).norm()), float(cosine))
    return result


@each("solver", SOLVERS)
def test_a_single_client_or_equal_ones_need_no_correction(solver):
    infos = lora()
    held = held_of(infos)
    one = trained_by(held, 1)
    for trained in (one, one * 3):
        found = averaged("lora_fair", infos, held, trained, solver=solver)
        torch.testing.assert_close(found, one[0], atol=1e-6, rtol=1e-6)


@each("solver", SOLVERS)
def test_A_is_averaged_and_a_dear_correction_leaves_the_average_of_B(solver):
    infos = lora()
    held = held_of(infos)
    trained = trained_by(held, 4, size=1.0)
    plain = averaged("fedavg", infos, held, trained)
    free = averaged("lora_fair", infos, held, trained, solver=solver)
    dear = averaged("lora_fair", infos, held, trained, solver=solver, penalty=1e9)
    for name, value in plain.items():
        torch.testing.assert_close(dear[name], value, atol=1e-5, rtol=1e-5)
        assert torch.equal(free[name], value) == name.endswith("A")


def test_the_cosine_grows_and_the_squared_distance_falls():
    infos = lora()
    held = held_of(infos)
    trained = trained_by(held, 5, size=1.0)
    plain = errors(averaged("fedavg", infos, held, trained), trained, infos)
    cosine = errors(averaged("lora_fair", infos, held, trained, steps=200, lr=1.0), trained, infos)
    closed = errors(
        averaged("lora_fair", infos, held, trained, solver="closed", penalty=1e-9), trained, infos
    )
    for site, (distance, likeness) in plain.items():
        assert cosine[site][1] > likeness + 0.005
        assert closed[site][0] < 0.99 * distance


def test_the_closed_solution_is_that_of_least_squares_on_the_dense_change():
    infos = lora()
    held = held_of(infos)
    trained = trained_by(held, 4, size=1.0)
    found = averaged("lora_fair", infos, held, trained, solver="closed", penalty=0.3)
    for site in ("s0", "s1"):
        A = sum(one[f"{site}.A"].double() for one in trained) / 4
        B = sum(one[f"{site}.B"].double() for one in trained) / 4
        D = sum(one[f"{site}.B"].double() @ one[f"{site}.A"].double() for one in trained) / 4
        wide = torch.cat([A, 0.3**0.5 * torch.eye(3, dtype=torch.float64)], dim=1)
        rest = torch.cat([D - B @ A, torch.zeros(len(B), 3, dtype=torch.float64)], dim=1)
        E = torch.linalg.lstsq(wide.T, rest.T).solution.T
        torch.testing.assert_close(found[f"{site}.B"].double(), B + E, atol=1e-5, rtol=1e-5)


def test_the_descent_reaches_what_autograd_reaches_on_the_dense_change():
    infos = lora(shapes=((5, 4),))
    held = held_of(infos)
    trained = trained_by(held, 4, size=1.0)
    found = averaged("lora_fair", infos, held, trained, penalty=0.01, steps=50, lr=0.01)
    A = sum(one["s0.A"].double() for one in trained) / 4
    B = sum(one["s0.B"].double() for one in trained) / 4
    D = sum(one["s0.B"].double() @ one["s0.A"].double() for one in trained) / 4
    E = torch.zeros_like(B, requires_grad=True)
    for _ in range(50):
        loss = (
            1 - torch.cosine_similarity(D.flatten(), ((B + E) @ A).flatten(), dim=0) + 0.01 * E.square().sum()
        )
        (slope,) = torch.autograd.grad(loss, E)
        E = (E - 0.01 * slope).detach().requires_grad_()
    torch.testing.assert_close(found["s0.B"].double(), B + E, atol=1e-6, rtol=1e-6)
