"""Every surrogate compiled, with a parameter of its own, has the gradient of the plain equations."""

import pytest
import torch

from spikedistill.neurons import LIF, NormNeuron, compilation
from spikedistill.neurons.surrogate import SURROGATES


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROGATES)
def test_compiled_surrogates_have_the_gradient_of_the_equations(name):
    alpha = 2.0 if name == "rectangle" else 1.6 * SURROGATES[name][2]
    x, weights = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    layer = NormNeuron(4, LIF(surrogate={"name": name, "alpha": alpha}, time_steps=2))
    gradients = []
    for way in ("compiled", "eager"):
        leaf = x.clone().requires_grad_()
        with compilation.use(way):
            (layer(leaf) * weights).sum().backward()
        gradients.append(leaf.grad)
    assert compilation.failure() is None
    largest = float(gradients[1].abs().max())
    assert largest > 1e-3
    # Statistics differ in the last bits, which steep surrogates multiply.
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * largest)
