"""Direct calls of compiled code: the same results, and the usual way wherever something is not as it was."""

import copy
import threading

import pytest
import torch
from torch import Tensor

import spikedistill as sd
from spikedistill.neurons import IF, LIF, PLIF, compilation, direct
from spikedistill.neurons.compilation import Kernel

pytestmark = pytest.mark.skipif(direct._private() is None, reason="this torch has other private names")
SLOPE = 0.3


def scaled(x: Tensor, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    y = x * a * SLOPE
    return y, None if b is None else y + b, x.sum(0)


def onto(x: Tensor, y: Tensor) -> None:
    x.copy_(x * 2 + y)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(scaled, "scaled_for_direct_calls")


def known(kernel: Kernel) -> list[bool]:
    """Whether each kind of arguments that was met goes the direct way."""
    assert isinstance(kernel._compiled, direct.Calls)
    return [way is not None for way in kernel._compiled._known.values()]


def checked(kernel: Kernel, *args: Tensor | None) -> None:
    for _ in range(3):
        for mine, plain in zip(kernel(*args), kernel.plain(*args), strict=True):
            if plain is None:
                assert mine is None
            else:
                torch.testing.assert_close(mine, plain)
                assert (mine.dtype, mine.shape, mine.stride()) == (plain.dtype, plain.shape, plain.stride())


def test_results_are_those_of_the_usual_way(kernel: Kernel) -> None:
    torch.manual_seed(0)
    with compilation.compiled(), torch.no_grad():
        for n, c in ((4, 8), (5, 8), (1, 16), (4, 1), (3, 7)):
            x, a, b = torch.randn(n, c), torch.randn(c), torch.randn(n, c)
            checked(kernel, x, a, b)
            checked(kernel, x, a, None)
            checked(kernel, x.t().contiguous().t(), a, b)  # other strides
            checked(kernel, x.double(), a, b)
            checked(kernel, x, a, x)  # one tensor twice
        assert len(known(kernel)) > 15
        assert all(known(kernel))


def test_what_is_written_over_is_the_argument() -> None:
    kernel = Kernel(onto, "onto_for_direct_calls")
    with compilation.compiled(), torch.no_grad():
        for i in range(4):
            x, y = torch.full((3, 4), float(i)), torch.randn(3, 4)
            expected = x * 2 + y
            assert kernel(x, y) is None
            torch.testing.assert_close(x, expected)
    assert known(kernel) == [True]


def test_gradients_go_the_usual_way(kernel: Kernel) -> None:
    x, a = torch.randn(4, 8, requires_grad=True), torch.randn(8)
    with compilation.compiled():
        with torch.no_grad():
            kernel(x, a, None)
            kernel(x, a, None)
        for _ in range(2):
            (g,) = torch.autograd.grad(kernel(x, a, None)[0].sum(), x)
            torch.testing.assert_close(g, (a * SLOPE).expand(4, 8))


def test_another_number_of_threads_is_looked_at_anew(kernel: Kernel) -> None:
    x, a = torch.randn(4, 8), torch.randn(8)
    before = torch.get_num_threads()
    with compilation.compiled(), torch.no_grad():
        kernel(x, a, None)
        kernel(torch.randn(5, 8), a, None)
        assert len(known(kernel)) == 2
        try:
            torch.set_num_threads(before + 1)
            kernel(x, a, None)
            assert len(known(kernel)) == 1
        finally:
            torch.set_num_threads(before)


def test_modes_go_the_usual_way(kernel: Kernel) -> None:
    x, a = torch.randn(4, 8), torch.randn(8)
    with compilation.compiled(), torch.no_grad():
        checked(kernel, x, a, None)
        with torch.device("cpu"):
            checked(kernel, x, a, None)
        with torch.inference_mode():
            checked(kernel, x.clone(), a, None)
        assert all(known(kernel))


def test_while_another_thread_watches_nothing_is_learned(kernel: Kernel) -> None:
    x, a = torch.randn(4, 8), torch.randn(8)
    with compilation.compiled(), torch.no_grad():
        with direct._watching:
            checked(kernel, x, a, None)
            assert known(kernel) == []
        checked(kernel, x, a, None)
        assert known(kernel) == [True]


def test_threads_get_their_own_results(kernel: Kernel) -> None:
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            generator = torch.Generator().manual_seed(seed)
            for n in range(2, 40):
                with torch.no_grad():
                    checked(kernel, torch.randn(n, 8, generator=generator), torch.ones(8), None)
        except BaseException as error:
            errors.append(error)

    with compilation.compiled(), torch.no_grad():
        kernel(torch.randn(4, 8), torch.ones(8), None)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    parts = direct._private()
    assert parts is not None
    assert parts[1].__call__.__module__ == "torch._inductor.output_code"  # put back


@pytest.mark.parametrize("neuron", [IF(), LIF(tau=2.0, reset="soft"), PLIF()], ids=repr)
def test_a_training_is_the_same_bit_for_bit(neuron: sd.neurons.Neuron, monkeypatch) -> None:
    def trained(usual: bool) -> list[Tensor]:
        if usual:
            monkeypatch.setattr(direct, "_key", lambda args: None)
        torch.manual_seed(0)
        network = sd.networks.create("vgg5", time_steps=2, width=0.25, neuron=copy.deepcopy(neuron))
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        with compilation.compiled():
            for _ in range(3):
                loss = torch.nn.functional.cross_entropy(
                    network(torch.rand(4, 3, 32, 32)).mean(0), torch.arange(4)
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return [p.detach() for p in network.parameters()]

    for mine, plain in zip(trained(False), trained(True), strict=True):
        assert torch.equal(mine, plain)
