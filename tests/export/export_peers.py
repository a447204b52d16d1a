"""Other tools' readers, and networks busy enough that a wrong reading shows."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikedistill.export.lower import lower
from spikedistill.networks.base import Network


def lively(network: Network, x: Tensor) -> Network:
    """Norms with random coefficients and the statistics of ``x``, so that most layers fire."""
    with torch.no_grad():
        for m in network.modules():
            if hasattr(m, "running_mean"):
                m.weight.uniform_(0.5, 1.5)
                m.bias.uniform_(-0.2, 0.8)
            elif isinstance(m, nn.Linear) and m.bias is not None:
                m.bias.uniform_(-0.1, 0.3)
        network.train()
        for _ in range(3):
            network(x)
    return network.eval()


def spikingjelly(path: Path) -> Any:
    """The file's network in SpikingJelly."""
    pytest.importorskip("spikingjelly")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spikingjelly.activation_based.nir_exchange import import_from_nir

        return import_from_nir(path).eval()


def snntorch(path: Path) -> Any:
    """The file's network in snnTorch, whose reader prints what it does."""
    pytest.importorskip("snntorch")
    import nir

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from snntorch.import_nir import import_from_nir

        return import_from_nir(nir.read(path)).eval()


def run_steps(peer: Any, frames: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What each module of a peer's network and the network gave at each step; ``frames`` (N, T, C, H, W)."""
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            seen.setdefault(name, []).append(out[0] if isinstance(out, tuple) else out)

        module.register_forward_hook(hook)

    for name, module in peer.named_children():
        watch(name, module)
    outs, state = [], None
    with torch.no_grad():
        for frame in frames.unbind(1):
            out, state = peer(frame) if state is None else peer(frame, state)
            outs.append(out)
    return {name: torch.stack(values) for name, values in seen.items()}, torch.stack(outs)


def neuron_layers(network: Network, x: Tensor) -> list[Any]:
    """The file's names of the network's neurons, with their paths and calls."""
    return [layer for layer in lower(network, x).layers.values() if layer.kind == "neuron"]


PEERS = {"spikingjelly": spikingjelly, "snntorch": snntorch}
