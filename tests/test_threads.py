"""Threads: the same bits for any number, calls from several Python threads, one OpenMP runtime."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import gossamer as gs


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("group_size", [None, 64])
@pytest.mark.parametrize("shape", [(8, 8), (700, 330), (33, 3000)])
@pytest.mark.parametrize("M", [1, 4, 17, 300])
def test_same_bits_for_any_number_of_torch_threads(
    isa: str, shape: tuple[int, int], M: int, group_size: int | None
) -> None:
    layer = gs.nn.Linear.from_dense(torch.nn.Linear(*shape[::-1]), gs.Quantize("int8", group_size))
    x = torch.randn(M, shape[1])
    outputs = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        with torch.no_grad():
            outputs += [layer(x), layer(x)]
    assert all(torch.equal(y, outputs[0]) for y in outputs)


def test_same_bits_from_several_python_threads_at_once(isa: str) -> None:
    layers = [
        gs.nn.Linear.from_dense(torch.nn.Linear(200, N), activation="gelu") for N in (64, 300, 77)
    ]
    inputs = [torch.randn(M, 200) for M in (1, 5, 64, 130)]
    work = [(layer, x) for layer in layers for x in inputs] * 8

    def call(item: tuple[gs.nn.Linear, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return item[0](item[1])

    want = [call(item) for item in work]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(call, work))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_packing_from_several_python_threads_at_once() -> None:
    weights = [torch.randn(90, 210) for _ in range(16)]
    want = [gs.formats.Int8.quantize(W).pack() for W in weights]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda W: gs.formats.Int8.quantize(W).pack(), weights))
    for a, b in zip(got, want, strict=True):
        assert torch.equal(gs.formats.Int8.unpack(a).values, gs.formats.Int8.unpack(b).values)


def test_the_gil_is_released() -> None:
    """Another Python thread counts on while a kernel runs.

    With the GIL held it could count only in the instants around the call, for a switch interval
    each: some ten thousand steps. The call takes a tenth of a second or more.
    """
    packed = gs.formats.Int8.quantize(torch.randn(1024, 4096)).pack()
    x = torch.randn(256, 4096)
    inside, stop, counted = threading.Event(), threading.Event(), [0]

    def count() -> None:
        while not stop.is_set():
            counted[0] += inside.is_set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        inside.set()
        gs.kernels.matmul(x, packed, isa="scalar", threads=1)
        inside.clear()
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert counted[0] > 100_000


def test_one_openmp_runtime_is_mapped() -> None:
    gs.kernels.matmul(torch.randn(64, 64), gs.formats.Int8.quantize(torch.randn(64, 64)))
    torch.randn(300, 300) @ torch.randn(300, 300)
    assert len(gs.cpu.openmp_runtimes()) == 1
