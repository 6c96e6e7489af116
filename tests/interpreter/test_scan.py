"""The selective scan: the readable reference against the recurrence in NumPy, the fast path against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interpreter.errors import ScanUnavailable
from interpreter.scan import Method, portable, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def arguments(b: int, d: int, length: int, n: int, g: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(b + 10 * d + n)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=dtype)

    A = -torch.rand(d, n, generator=random, dtype=dtype) * n - 0.05
    return [normal(b, d, length), normal(b, d, length), A, normal(b, g, n, length), normal(b, g, n, length), normal(d), normal(d)]  # fmt: skip  # noqa: E501


def by_hand(u, delta, A, B, C, D, bias):  # type: ignore[no-untyped-def]
    """Four loops over the equations, nothing shared with the package."""
    y = np.zeros_like(u)
    for i in range(u.shape[0]):
        for c in range(u.shape[1]):
            group = c // (u.shape[1] // B.shape[1])
            h = np.zeros(A.shape[1])
            for p in range(u.shape[2]):
                step = np.log1p(np.exp(delta[i, c, p] + bias[c]))
                for k in range(A.shape[1]):
                    h[k] = np.exp(step * A[c, k]) * h[k] + step * B[i, group, k, p] * u[i, c, p]
                y[i, c, p] = (C[i, group, :, p] * h).sum() + D[c] * u[i, c, p]
    return y


SHAPES = [(1, 4, 9, 1, 1), (2, 8, 33, 16, 4), (1, 6, 20, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_is_the_recurrence(shape: tuple[int, ...]) -> None:
    tensors = arguments(*shape, dtype=torch.float64)
    from interpreter.scan.reference import selective_scan as reference

    np.testing.assert_allclose(reference(*tensors).numpy(), by_hand(*[t.numpy() for t in tensors]), rtol=1e-10)


@pytest.mark.parametrize("method", ["numba", "torch"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 16, 700, 16, 4), (2, 520, 130, 1, 4)])
def test_fast_paths_agree_with_the_reference_forward_and_backward(shape: tuple[int, ...], method: Method) -> None:
    from interpreter.scan.reference import selective_scan as reference

    float32 = [t.requires_grad_() for t in arguments(*shape)]
    float64 = [t.detach().double().requires_grad_() for t in float32]
    fast, exact = selective_scan(*float32, method=method), reference(*float64)
    assert float((fast - exact).detach().abs().max() / exact.detach().abs().max()) < 1e-5
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    fast_gradients = torch.autograd.grad((fast * weights).sum(), float32)
    exact_gradients = torch.autograd.grad((exact * weights).sum(), float64)
    for name, found, expected in zip(NAMES, fast_gradients, exact_gradients, strict=True):
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4, name


def test_the_portable_scan_takes_as_many_chunks_as_its_memory_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [t.requires_grad_() for t in arguments(2, 8, 77, 4, 2, torch.float64)]
    results = []
    for values in (1, 1000, 1 << 24):  # one position at a time, some, all
        monkeypatch.setattr(portable, "CHUNK_VALUES", values)
        y = portable.selective_scan(*tensors)
        results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            tensors = [t.requires_grad_() for t in arguments(2, 8, 64, 16, 4)]
            y = selective_scan(*tensors, method="numba")
            results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_autocast_does_not_reach_the_scan() -> None:
    tensors = arguments(1, 4, 16, 4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = selective_scan(*tensors)
    assert torch.equal(inside, selective_scan(*tensors))


def test_half_precision_input_gives_half_precision_output() -> None:
    tensors = arguments(1, 4, 16, 4, 2)
    y = selective_scan(tensors[0].bfloat16(), *tensors[1:])
    assert y.dtype == torch.bfloat16


def test_large_steps_decay_to_nothing_and_small_ones_stay() -> None:
    u, delta, A, B, C, D, bias = arguments(1, 2, 8, 2, 1)
    y = selective_scan(u, delta * 0 + 200, A * 0 - 5, B, C, D, bias * 0)
    drive = 200 * u * (B * C).sum(2)  # nothing is carried over
    torch.testing.assert_close(y, drive + D[:, None] * u, rtol=1e-4, atol=1e-3)


def test_a_scan_that_cannot_run_here_is_refused() -> None:
    with pytest.raises(ScanUnavailable, match="'mamba_ssm' cannot run on cpu tensors"):
        selective_scan(*arguments(1, 2, 4, 2, 1), method="mamba_ssm")


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["mamba_ssm", "torch", "reference"])
def test_cuda_agrees_with_the_reference(method: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tensors = arguments(2, 8, 65, 16, 4)
    expected = selective_scan(*tensors, method="reference")
    try:
        found = selective_scan(*[t.cuda() for t in tensors], method=method)  # type: ignore[arg-type]
    except ScanUnavailable:
        pytest.skip("mamba_ssm's kernel is not installed; `make gpu` builds it")
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
