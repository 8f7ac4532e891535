"""Eight threads at once: PyTorch's forward mode and `functional_call` are global to the process."""

import threading

import torch

import torchjac

THREADS = 8
ROUNDS = 6


def at_once(work):
    """Run ``work(i)`` in eight threads that start together; what any raises is raised here."""
    errors, gate = [], threading.Barrier(THREADS)

    def run(i):
        try:
            gate.wait()
            for _ in range(ROUNDS):
                work(i)
        except BaseException as error:  # noqa: BLE001 (it must reach the main thread)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def expected(weight, x):
    """The Jacobian and, for the sum of the outputs, the Hessian of tanh(W x) in closed form."""
    t = (weight @ x).tanh()
    jacobian = (1 - t**2)[:, None] * weight
    hessian = torch.einsum("k,ki,kj->ij", -2 * t * (1 - t**2), weight, weight)
    return jacobian, hessian


def test_every_transform_in_every_mode_gets_right_answers():
    weight = torch.randn(4, 3, dtype=torch.float64)

    def func(x):
        return (weight @ x).tanh()

    def work(i):
        x = torch.full((3,), i / THREADS, dtype=torch.float64)
        jacobian, hessian = expected(weight, x)
        torch.testing.assert_close(
            torchjac.jac(func, mode=("forward", "reverse")[i % 2])(x), jacobian
        )
        mode = ("forward-over-reverse", "reverse-over-reverse")[i // 2 % 2]
        got = torchjac.hessian(lambda x: func(x).sum(), mode=mode)(x)
        torch.testing.assert_close(got, hessian)
        batch = torch.stack([x, -x])
        got = torchjac.batched_jac(func)(batch)
        torch.testing.assert_close(got, torch.stack([jacobian, expected(weight, -x)[0]]))

    at_once(work)


def test_one_module_is_differentiated_by_its_parameters_and_by_its_input_at_once():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.Tanh()).double()
    weight = net[0].weight.detach().clone()
    parameter = net[0].weight

    def work(i):
        x = torch.full((3,), (i + 1) / THREADS, dtype=torch.float64)
        jacobian, _ = expected(weight, x)
        slope = 1 - (weight @ x).tanh() ** 2
        # d tanh(W x)_o / d W_pq = slope_o * delta_op * x_q
        by_weight = torch.einsum("o,op,q->opq", slope, torch.eye(4, dtype=x.dtype), x)
        mode = ("forward", "reverse")[i % 2]
        got = torchjac.jac(net, argnums="params", mode=mode)(x)
        torch.testing.assert_close(got["0.weight"], by_weight)
        torch.testing.assert_close(torchjac.jac(net, mode=mode)(x), jacobian)
        # A module that hides behind a closure.
        torch.testing.assert_close(torchjac.jac(lambda x: net(x), mode=mode)(x), jacobian)
        torch.testing.assert_close(
            torchjac.batched_jac(net, per_sample=False)(x[None])[0], jacobian
        )

    at_once(work)
    assert net[0].weight is parameter
    assert torch.equal(net[0].weight, weight)
    assert parameter.requires_grad
    assert parameter.grad is None


def test_a_module_whose_parameters_func_swaps_by_itself():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.Tanh()).double()
    own = list(net.parameters())
    q = torch.linspace(-1, 1, 3, dtype=torch.float64)

    def func(p):
        return torch.func.functional_call(net, {"0.weight": p}, (q,))

    def work(i):
        for k in range(20):
            weight = torch.full((4, 3), (i + k) / THREADS, dtype=torch.float64)
            slope = 1 - (weight @ q).tanh() ** 2
            J = torch.einsum("o,op,q->opq", slope, torch.eye(4, dtype=q.dtype), q).reshape(4, 12)
            op = torchjac.jac_operator(func)(weight)
            torch.testing.assert_close(op.to_dense(), J)
            blocks = [block for _, block in torchjac.jac_blocks(func, by="rows")(weight)]
            torch.testing.assert_close(torch.cat(blocks), J)
            H = torchjac.hessian_operator(lambda p: func(p).sum())(weight)
            H = H @ torch.ones(12, dtype=q.dtype)
            second = -2 * (weight @ q).tanh() * slope * q.sum()
            torch.testing.assert_close(H, torch.outer(second, q).reshape(12))

    at_once(work)
    assert all(one is other for one, other in zip(net.parameters(), own, strict=True))
    assert len(own) == 1


def test_tensors_in_graphs_of_their_own_do_not_meet():
    def work(i):
        x = torch.full((3,), i / THREADS, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(torchjac.jac_of(x.sin(), x), x.detach().cos().diag())

    at_once(work)


def test_the_first_sight_of_one_signature_may_happen_in_all_threads():
    def work(i):
        x = torch.full((3,), i / THREADS, dtype=torch.float64)
        torch.testing.assert_close(torchjac.jac(torch.exp)(x), x.exp().diag())

    at_once(work)
