"""LoRA-Pro: the identities of its closed form, and its steps against the formulas written out in full."""

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim._pairs import gram, sylvester
from lrft.methods.optim.lora_pro import Solver
from lrft.registry.axes import OPTIMIZERS

M, N, R, S = 24, 18, 4, 2.5


def tensor(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def problem():
    """A, B, G and the gradients that backpropagation gives, in float64."""
    A, B, G = tensor(R, N, seed=1), tensor(M, R, seed=2), tensor(M, N, seed=3)
    solver = Solver.of(A, B, S, 1e-300)
    return solver, G, S * B.mT @ G, S * G @ A.mT


def projectors(solver):
    A, B = solver.A, solver.B
    return B @ torch.linalg.inv(B.mT @ B) @ B.mT, A.mT @ torch.linalg.inv(A @ A.mT) @ A


def test_the_step_of_the_product_is_the_gradient_projected_from_both_sides(problem):
    solver, G, gA, gB = problem
    P_B, P_A = projectors(solver)
    expected = P_B @ G + (torch.eye(M, dtype=G.dtype) - P_B) @ G @ P_A
    for balanced in (True, False):
        found = solver.equivalent(*solver.adjusted(gA, gB, balanced))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_it_is_the_least_squares_optimum(problem):
    """Against a generic solver over the r (m + n) numbers of the two factors' steps."""
    solver, G, gA, gB = problem
    left = torch.kron(solver.B, torch.eye(N, dtype=G.dtype))
    right = torch.kron(torch.eye(M, dtype=G.dtype), solver.A.mT.contiguous())
    system = S * torch.cat([left, right], dim=1)
    best = torch.linalg.lstsq(system, G.reshape(-1, 1), driver="gelsd").solution
    optimum = (system @ best - G.reshape(-1, 1)).norm()
    found = (solver.equivalent(*solver.adjusted(gA, gB)) - G).norm()
    torch.testing.assert_close(found, optimum, rtol=1e-10, atol=0)


def test_X_solves_its_sylvester_equation_and_no_other_keeps_the_gradients_nearer(problem):
    solver, _, gA, gB = problem
    plainA, plainB = solver.adjusted(gA, gB, balanced=False)
    newA, newB = solver.adjusted(gA, gB)
    X = (newA - plainA) @ torch.linalg.pinv(solver.A)
    BB, AA = solver.B.mT @ solver.B, solver.A @ solver.A.mT
    residual = BB @ X + X @ AA + torch.linalg.inv(BB) @ gA @ solver.A.mT / S**2
    assert residual.abs().max() < 1e-10
    torch.testing.assert_close(newB, plainB - solver.B @ X)

    def distance(X):
        return (plainA + X @ solver.A - gA).norm() ** 2 + (plainB - solver.B @ X - gB).norm() ** 2

    for seed in range(20):
        assert distance(X + 1e-3 * tensor(R, R, seed=seed)) > distance(X)


def test_the_step_never_ascends(problem):
    solver, G, gA, gB = problem
    newA, newB = solver.adjusted(gA, gB)
    inner = (gA * newA).sum() + (gB * newB).sum()
    torch.testing.assert_close(inner, (solver.equivalent(newA, newB) * G).sum())
    assert inner >= 0


def test_sylvester_solves_any_pair_of_semidefinite_coefficients():
    L, K, C = gram(tensor(5, 9, seed=1), 1e-8), gram(tensor(5, 3, seed=2), 1e-8), tensor(5, 5, seed=3)
    X = sylvester(L, K, C, 1e-8)
    left, right = (g.vectors @ torch.diag(g.values) @ g.vectors.mT for g in (L, K))
    torch.testing.assert_close(left @ X + X @ right, C)


def test_the_damped_inverse_is_the_pinv_of_the_authors():
    rows = tensor(6, 40, seed=4, dtype=torch.float32)
    rows[3] = rows[2]
    rows[4] = 0
    expected = torch.linalg.pinv(rows @ rows.mT + 1e-8 * torch.eye(6), hermitian=True)
    found = gram(rows, 1e-8).inverse
    assert found.dtype == torch.float32 and found.abs().max() < 1e3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_with_B_at_zero_A_rests_and_B_takes_the_gradient_in_As_metric():
    A, G = tensor(R, N, seed=1, dtype=torch.float32), tensor(M, N, seed=3, dtype=torch.float32)
    solver = Solver.of(A, torch.zeros(M, R), S, 1e-8)
    newA, newB = solver.adjusted(torch.zeros(R, N), S * G @ A.mT)
    assert torch.equal(newA, torch.zeros(R, N))
    torch.testing.assert_close(newB, G @ A.mT @ torch.linalg.inv(A @ A.mT) / S, rtol=1e-4, atol=1e-5)


def site(rank=R, scaling=S, B=None, dtype=torch.float32):
    A = torch.nn.Parameter(tensor(rank, N, seed=1).to(dtype))
    B = torch.nn.Parameter((tensor(M, rank, seed=2) if B is None else B).to(dtype))
    extra = torch.nn.Parameter(tensor(M, seed=9).to(dtype))
    return [
        ParamInfo("s.A", A, "lora_A", "s", scaling=scaling, partner=B),
        ParamInfo("s.B", B, "lora_B", "s", scaling=scaling, partner=A),
        ParamInfo("s.magnitude", extra, "magnitude", "s"),
    ]


def build(infos, **settings):
    config = OPTIMIZERS.declared("lora_pro").config(method="lora_pro", **settings)
    return OPTIMIZERS.get("lora_pro").build(infos, config)


def feed(infos, t):
    """Gradients of both factors from one full gradient, as backpropagation would give them."""
    A, B, extra = (info.param for info in infos)
    G = tensor(M, N, seed=100 + t).to(A.dtype)
    A.grad, B.grad, extra.grad = (
        S * B.detach().mT @ G,
        S * G @ A.detach().mT,
        tensor(M, seed=200 + t).to(A.dtype),
    )
    return G


def written_out(A, B, gA, gB, X):
    """The adjusted gradients by explicit inverses, float64."""
    iB, iA = torch.linalg.inv(B.mT @ B), torch.linalg.inv(A @ A.mT)
    eye = torch.eye(len(B), dtype=B.dtype)
    return iB @ gA / S**2 + X @ A, (eye - B @ iB @ B.mT) @ gB @ iA / S**2 - B @ X


def balance(A, B, gA):
    """X by the vectorised linear system."""
    BB, AA, eye = B.mT @ B, A @ A.mT, torch.eye(R, dtype=A.dtype)
    C = -torch.linalg.inv(BB) @ gA @ A.mT / S**2
    return torch.linalg.solve(torch.kron(BB, eye) + torch.kron(eye, AA), C.reshape(-1)).reshape(R, R)


@pytest.mark.parametrize("variant", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_follow_the_equations(variant, decay):
    lr, b1, b2, eps = 0.01, 0.9, 0.999, 1e-8
    infos = site(dtype=torch.float64)
    optimizer = build(infos, variant=variant, lr=lr, weight_decay=decay, damping=1e-30)
    A, B = infos[0].param.detach().clone(), infos[1].param.detach().clone()
    m, v = 0.0, 0.0
    for t in range(1, 5):
        G = feed(infos, t)
        optimizer.step()
        gA, gB = S * B.mT @ G, S * G @ A.mT
        if variant == "adamw":
            plainA, plainB = written_out(A, B, gA, gB, torch.zeros(R, R, dtype=A.dtype))
            full = S * (B @ plainA + plainB @ A)
            m, v = b1 * m + (1 - b1) * full, b2 * v + (1 - b2) * full**2
            direction = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps)
            gA, gB = S * B.mT @ direction, S * direction @ A.mT
        stepA, stepB = written_out(A, B, gA, gB, balance(A, B, gA))
        A, B = A * (1 - lr * decay) - lr * stepA, B * (1 - lr * decay) - lr * stepB
        torch.testing.assert_close(infos[0].param.data, A, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(infos[1].param.data, B, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variant", ["adamw", "sgd"])
def test_from_B_at_zero_it_stays_finite_and_follows_the_full_step(variant):
    """The first step of the product is lr times the (Adam) gradient, projected on the rows of A."""
    infos = site(B=torch.zeros(M, R))
    A, B = infos[0].param, infos[1].param
    start, lr = A.detach().clone(), 1e-3
    optimizer = build(infos, variant=variant, lr=lr)
    G = feed(infos, 0)
    optimizer.step()
    assert torch.equal(A, start)
    P = A.mT @ torch.linalg.inv(A @ A.mT) @ A
    full = (G @ P).sign() @ P if variant == "adamw" else G @ P
    torch.testing.assert_close(S * B @ A, -lr * full, rtol=1e-2, atol=1e-5)
    for t in range(1, 6):
        feed(infos, t)
        optimizer.step()
    assert A.isfinite().all() and B.isfinite().all() and not torch.equal(A, start)


def test_the_product_does_not_care_how_its_factors_share_their_size():
    """A to A / c and B to c B leave s B A where it is, and so the equivalent gradient."""
    G = tensor(M, N, seed=3)
    steps = []
    for c in (1.0, 30.0):
        A, B = tensor(R, N, seed=1) / c, c * tensor(M, R, seed=2)
        solver = Solver.of(A, B, S, 1e-300)
        steps.append(solver.equivalent(*solver.adjusted(S * B.mT @ G, S * G @ A.mT)))
    torch.testing.assert_close(*steps, rtol=1e-9, atol=1e-9)


def test_the_moments_are_those_of_the_full_matrix():
    infos = site()
    optimizer = build(infos)
    feed(infos, 0)
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    assert sum(t.nbytes for t in held) == 8 * (M * N + M)
    sgd = build(infos, variant="sgd")
    feed(infos, 0)
    sgd.step()
    assert not any(sgd.state.values())


@pytest.mark.parametrize(("variant", "plain"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_other_parameters_take_the_plain_form_of_the_variant(variant, plain):
    infos = site()
    twin = torch.nn.Parameter(infos[2].param.detach().clone())
    optimizer = build(infos, variant=variant, lr=0.01)
    reference = plain([twin], lr=0.01, weight_decay=0.0, foreach=False)
    for t in range(3):
        feed(infos, t)
        twin.grad = infos[2].param.grad.clone()
        optimizer.step()
        reference.step()
    assert torch.equal(twin, infos[2].param)


def test_solves_are_float32_and_moments_survive_a_checkpoint_when_factors_are_bfloat16():
    infos, others = site(dtype=torch.bfloat16), site(dtype=torch.bfloat16)
    optimizer, resumed = build(infos, lr=0.01), build(others, lr=0.01)
    feed(infos, 0)
    optimizer.step()
    resumed.load_state_dict(optimizer.state_dict())
    assert optimizer.state[infos[1].param]["exp_avg"].dtype == torch.float32
    assert torch.equal(
        resumed.state[others[1].param]["exp_avg_sq"], optimizer.state[infos[1].param]["exp_avg_sq"]
    )
    assert infos[0].param.dtype == torch.bfloat16 and infos[0].param.isfinite().all()


def test_factors_that_do_not_come_as_a_pair_are_refused():
    a, b, extra = site()
    no_partner = ParamInfo(b.name, b.param, b.role, b.site, scaling=S)
    with pytest.raises(ValueError, match="other factor is not known"):
        build([a, no_partner, extra])
    with pytest.raises(ValueError, match=r"s\.B trains alone; choose optimizer adamw, or lora_fa"):
        build([b, extra])
    with pytest.raises(ValueError, match=r"s\.A trains alone"):
        build([a, extra])
    stacked = torch.nn.Parameter(torch.zeros(2, M, R))
    with pytest.raises(ValueError, match="are not the factors"):
        build([a, ParamInfo("s.B", stacked, "lora_B", "s", partner=a.param)])


def test_a_pair_with_one_gradient_is_refused():
    infos = site()
    optimizer = build(infos)
    feed(infos, 0)
    infos[0].param.grad = None
    with pytest.raises(RuntimeError, match="both factors"):
        optimizer.step()
