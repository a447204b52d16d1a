"""Networks as ONNX files: the whole simulation in one graph, or one time step, membranes going in and out."""

import copy
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .. import finite
from ..errors import SpikedistillError
from ..files import destination, exported
from ..networks.base import Network
from ..networks.graph import trace
from ..neurons import Parallel, neuron_of
from ..neurons.compilation import eager
from ..neurons.qcfs import SignedIF
from ..simulation import Simulation

NEXT, SPIKES = ".next", ".spikes"


def to_onnx(
    network: Network,
    path: str | os.PathLike[str],
    example: Tensor,
    per_step: bool = False,
    spikes: bool = False,
) -> None:
    """Write an SNN (or ANN) in eval mode as an ONNX graph with a free batch dimension.

    Whole: ``input`` to ``logits`` (T, N, K) (ANN: (N, K)). ``per_step``: ``input`` (N, C, H, W), one step's
    frame or the same image at each step, and one input a neuron, named as in the state of ``network.step``
    ("path#k"), to ``logits`` (N, K) and the new membranes, named "path#k.next"; the first step's are the
    file's metadata ``states`` (0 but where a neuron has an initial value). ``spikes`` adds an output
    "path#k.spikes" a neuron: (T, N, ...), per step (N, ...).

    ``example``: a batch as the network takes it. Quantized networks are written with their integer codes as
    constants, so that a runtime with exact float32 sums of integers below 2^24 gives the same spikes.
    Metadata: ``spikedistill`` (JSON). Raises :class:`SpikedistillError`, naming the module, for what cannot
    be traced, before anything is written.
    """
    from .frozen import freeze

    target = destination(path)
    _packages()
    _check(network, per_step)
    finite.check(network, "to_onnx: the network")
    finite.check_batches([example], "to_onnx: example")
    # a copy: freezing exchanges methods and buffers in place
    network = copy.deepcopy(network).eval().cpu()
    example = example.detach().cpu()
    if network.quantization is None:
        network = network.float()  # what runtimes know
    network = freeze(network)
    example = example.float() if example.is_floating_point() else example
    example = torch.cat([example, example])[:2]  # one example would fix the batch dimension at 1
    wrapper = _Step(network, example, spikes) if per_step else _Whole(network, example, spikes)
    program = _export(wrapper)
    program.model.metadata_props["spikedistill"] = json.dumps(wrapper.metadata())
    with exported(target) as temporary:
        # one file, since `exported` gives its name to one
        program.save(str(temporary), external_data=False)


def _packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise SpikedistillError(
            "ONNX files need onnx and onnxscript: pip install 'spikedistill[export]'"
        ) from None


def _check(network: Any, per_step: bool) -> None:
    if not isinstance(network, Network):
        raise SpikedistillError(
            f"found a {type(network).__name__}; give a spikedistill network (sd.spiking turns others)"
        )
    if per_step and not network.spiking:
        raise SpikedistillError("this network is an ANN: it has no time steps; leave per_step out")
    counting = next((m for m in network.modules() if isinstance(m, SignedIF)), None)
    if per_step and counting is not None:
        raise SpikedistillError(
            "signed_if bounds its spikes by the step's number, which a step's graph does not know; export "
            "the whole simulation"
        )
    parallel = next((m for m in network.modules() if isinstance(m, Parallel)), None)
    if per_step and parallel is not None:
        raise SpikedistillError(
            f"{parallel.kind} weighs several time steps and has no membrane that a step's graph could carry "
            "on; export the whole simulation"
        )
    if network.encoding == "poisson":
        raise SpikedistillError(
            "encoding 'poisson' draws at random and a file cannot repeat its draws; use 'direct'"
        )
    if network.encoding == "latency" and per_step:
        raise SpikedistillError(
            "encoding 'latency' depends on the step's number; export the whole simulation"
        )


class _Whole(nn.Module):
    def __init__(self, network: Network, example: Tensor, spikes: bool) -> None:
        super().__init__()
        self.network, self.T = network, network.time_steps
        self.arguments: tuple[Tensor, ...] = (example,)
        self.calls = _calls(network, example)
        self.spikes = list(self.calls) if spikes else []
        self.inputs, self.outputs = ["input"], ["logits", *(key + SPIKES for key in self.spikes)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        wanted = [self.calls[key] for key in self.spikes]
        with Simulation(self.network, self.T, insides=wanted) as sim:
            out = self.network(x)
        return out, *(sim.captured[key] for key in wanted)

    def metadata(self) -> dict[str, Any]:
        """What the file says about itself."""
        return {"format": "spikedistill", "version": 1, "per_step": False, "time_steps": self.T}


class _Step(_Whole):
    def __init__(self, network: Network, example: Tensor, spikes: bool) -> None:
        if network.input == "frames":
            example = example[:, 0]
        super().__init__(network, example, spikes)
        with torch.no_grad(), eager():
            _, state = network.step(example)
        self.keys = [key for key in state if key != "step"]
        self.shapes = [tuple(state[key].shape[1:]) for key in self.keys]
        self.inputs += self.keys
        # between logits and spikes, as `forward` returns them
        self.outputs[1:1] = [key + NEXT for key in self.keys]
        self.arguments = (example, *(state[key] for key in self.keys))

    def forward(self, x: Tensor, *membranes: Tensor) -> tuple[Tensor, ...]:
        wanted = [self.calls[key] for key in self.spikes]
        state = {"step": 1, **dict(zip(self.keys, membranes, strict=True))}
        with Simulation(self.network, 1, state=state, insides=wanted) as sim:
            out = self.network(x)[0]
        return out, *(sim.state_out[key] for key in self.keys), *(sim.captured[key][0] for key in wanted)

    def metadata(self) -> dict[str, Any]:
        initial = [_initial(self.network.get_submodule(key.rsplit("#", 1)[0])) for key in self.keys]
        states = {
            key: {"shape": list(shape), "initial": value}
            for key, shape, value in zip(self.keys, self.shapes, initial)
        }
        return {**super().metadata(), "per_step": True, "states": states}


def _calls(network: Network, example: Tensor) -> dict[str, tuple[str, int, str]]:
    """Every neuron's calls, "path#k", in order."""
    if not network.spiking:
        return {}
    if any(isinstance(m, Parallel) and m.tied for m in network.modules()):  # these cannot be stepped
        with torch.no_grad(), eager():
            nodes = [node for node in trace(network, example) if neuron_of(node.module) is not None]
        return {f"{node.path}#{node.call}": (str(node.path), node.call, "spikes") for node in nodes}
    streaming = example.dim() == network.dims + 2
    with torch.no_grad(), eager():
        if streaming:
            _, state = network.step(example)
        else:
            _, state = network.step(example[:, 0])
    calls = {key: key.rsplit("#", 1) for key in state if key != "step"}
    neurons = {key: c for key, c in calls.items() if neuron_of(network.get_submodule(c[0])) is not None}
    return {key: (path, int(k), "spikes") for key, (path, k) in neurons.items()}


def _initial(module: nn.Module) -> float:
    neuron = neuron_of(module)
    if neuron is None:  # counts of spikes begin with none
        return 0.0
    return (
        neuron.initial if neuron.grid is None else float(math.floor(neuron.initial / neuron.grid.unit + 0.5))
    )


def _export(wrapper: _Whole) -> Any:
    batch = torch.export.Dim("batch")
    free = (
        ({0: batch},)
        if type(wrapper) is _Whole
        else ({0: batch}, tuple({0: batch} for _ in wrapper.arguments[1:]))
    )
    entered: list[str] = []
    with torch.no_grad(), warnings.catch_warnings(), eager(), _watched(wrapper.network, entered):
        warnings.simplefilter("ignore")  # of the exporter, about itself
        try:
            # apart from the translation: what torch cannot trace and what ONNX cannot say are two errors
            traced = torch.export.export(wrapper, wrapper.arguments, dynamic_shapes=free, strict=False)
        except SpikedistillError:
            raise
        except Exception as why:
            where = entered[-1] if entered else type(wrapper.network).__name__
            raise SpikedistillError(f"{where}: cannot be traced for ONNX: {_first_line(why)}") from why
        try:
            return torch.onnx.export(
                traced,
                (),
                dynamo=True,
                verbose=False,
                input_names=wrapper.inputs,
                output_names=wrapper.outputs,
            )
        except Exception as why:
            raise SpikedistillError(f"{_blamed(why)}: has no ONNX form: {_first_line(why)}") from why


@contextmanager
def _watched(network: nn.Module, entered: list[str]) -> Iterator[None]:
    """Paths of the modules that are running, outermost first; a module that fails stays."""
    paths = {id(m): name for name, m in network.named_modules()}

    def before(module: nn.Module, _: Any) -> None:
        if paths.get(id(module)):
            entered.append(paths[id(module)])

    def after(module: nn.Module, *_: Any) -> None:
        if paths.get(id(module)) and entered:
            entered.pop()

    handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blamed(why: BaseException | None) -> str:
    """The path of the module whose operation the exporter could not translate, from the operation's notes."""
    while why is not None:
        node = getattr(why, "node", None)
        stack = getattr(node, "meta", {}).get("nn_module_stack") if node is not None else None
        if stack:
            # the wrapper holds the network under this name
            return str(list(stack.values())[-1][0]).removeprefix("network.")
        why = why.__cause__
    return "this network"


def _first_line(why: BaseException) -> str:
    text = str(why).strip()
    return text.splitlines()[0] if text else type(why).__name__
