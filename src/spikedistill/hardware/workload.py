"""What a network asks of a chip: its layers, from the traced graph, activity measured on a batch."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import finite
from ..errors import SpikedistillError
from ..networks.base import Network
from ..networks.graph import Graph, trace
from ..networks.operations import MOVES, Node
from ..neurons import Neuron, NormNeuron, Parallel
from ..quantization.folded import FoldedLayer
from ..quantization.quantized import Quantization
from .events import measure
from .held import MULTIPLIER_BITS, OFFSET_BITS, Widths, with_potentials
from .held import measure as measure_widths
from .layer import Events, InputKind, Layer
from .past import past
from .seen import Seen, look, watch

# the largest integer that is fed pulse by pulse; above it a value is real, of as many bits as it needs
SMALL = 8


@dataclass(frozen=True)
class _Value:
    """What a tensor holds. ``unknown``: nothing in the graph tells; then values on a real batch decide.

    ``sums``: of means of spikes or small integers the largest sum behind one, None for other real values.
    """

    kind: InputKind | Literal["unknown"]
    bits: int = 32
    max: int = 1
    sums: int | None = None

    def observed(self, seen: "Seen") -> "_Value":
        """Structure first: what is real by structure stays real whatever its values happen to be."""
        if self.kind == "real":
            return self
        if seen.integers and seen.low >= 0 and seen.high <= SMALL:
            return _Value("spikes") if seen.high <= 1 else _Value("integers", max=int(seen.high))
        if seen.integers and seen.low >= 0:
            return _Value("real", bits=int(seen.high).bit_length())
        return _Value("real", bits=self.bits)


def layers(network: nn.Module, batch: Tensor, image_bits: int = 8) -> list[Layer]:
    """The layers of a network with everything measured on ``batch``, in one pass (eval mode, no gradients).

    Of a quantized network a second pass measures how wide accumulators and charged membranes are (`held`).

    Whether an input is 0/1 spikes, small integers or real follows from the graph: a neuron makes spikes,
    adding spikes makes integers, a convolution, norm, mean or image makes real values; where the graph cannot
    tell (event frames, other people's modules), from the batch. What cannot be priced is returned as a layer
    of kind ``other``, never left out.

    ``image_bits``: bits of an image's pixels. Shape: batch as the network takes it, N images.

    Raises: SpikedistillError when the network has no convolution or linear layer, when the batch is empty or
    holds NaN.
    """
    finite.check_batches([batch], "hardware.layers")
    if not 1 <= image_bits <= 64:
        raise SpikedistillError(f"image_bits must be 1 to 64, found {image_bits}")
    inputs: dict[str, Tensor] = {}
    seen: dict[str, Seen] = {}
    fired: dict[str, float] = {}

    def see(name: str, module: nn.Module, x: Tensor, out: Tensor) -> None:
        if isinstance(module, (Neuron, NormNeuron)):
            fired[name] = float(out.sum(dtype=torch.float64))
        else:
            inputs[name], seen[name] = x.detach(), look(x)

    # hooks see the tracing pass itself: activity costs no second one
    with watch(network, see):
        graph = trace(network, batch)
    reader = _Reader(network, graph, image_bits, seen, measure_widths(network, batch, graph))
    found: list[Layer] = []
    for node in graph:
        for layer in reader.read(node):
            if layer.kind in ("conv", "linear") and layer.input_kind != "real":
                layer = replace(layer, events=_events(layer, node.module, inputs[node.name], graph.batch))
            if layer.kind in ("neuron", "other") and layer.neuron != "relu" and node.name in fired:
                layer = replace(layer, spikes_out=fired[node.name] / graph.batch)
            found.append(layer)
        inputs.pop(node.name, None)
    if not any(layer.kind in ("conv", "linear") for layer in found):
        raise SpikedistillError(
            f"{type(network).__name__} has no convolution and no linear layer: nothing to price"
        )
    found = [replace(layer, passes=reader.passes.get(layer.name, 1.0)) for layer in found]
    shortcuts = _shortcuts(graph)
    found = [replace(layer, shortcut=True) if layer.name in shortcuts else layer for layer in found]
    return with_potentials(found)


def _events(layer: Layer, module: Any, x: Tensor, images: int) -> Events:
    """What a layer's input touches; features of a linear layer are channels at one site each."""
    if layer.kind == "linear":
        return measure(layer, x.reshape(-1, layer.in_channels, 1, 1), images)
    # padded as the module does it: values that come round an edge are spikes too, and sides may differ
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode)
    x = x.unsqueeze(2) if x.dim() == 3 else x
    return measure(replace(layer, in_size=_hw(x.shape), padding=(0, 0), far_padding=(0, 0)), x, images)


def _placed(node: Node) -> bool:
    """Whether values are but put to other places: an interpolation between them is arithmetic."""
    return node.op != "upsample" or node.settings["mode"].startswith("nearest")


def _name(node: Node) -> str:
    # a module called again is another layer: the graph's name tells the calls apart
    return node.path if node.path and node.call == 0 else node.name


class _Reader:
    """Turns nodes into layers, remembering what each node's output holds and which layers it came from."""

    def __init__(
        self, network: nn.Module, graph: Graph, image_bits: int, seen: dict[str, Seen], widths: Widths
    ) -> None:
        self.widths = widths
        self.graph, self.seen, self.steps = graph, seen, graph.time_steps or 1
        self.holds: dict[str, _Value] = {}
        self.passes: dict[str, float] = {}  # of layers whose past sums are computed again
        self.sources: dict[str, tuple[str, ...]] = {}
        # what frames and encoded images hold is not in the graph: they are looked at
        direct_image = (
            isinstance(network, Network) and network.input == "image" and network.encoding == "direct"
        )
        self.input = _Value("real", bits=image_bits) if direct_image else _Value("unknown")
        self.quantization: Quantization | None = getattr(network, "quantization", None)
        self.parts: dict[str | None, Any] = dict(self.quantization.parts) if self.quantization else {}

    def read(self, node: Node) -> list[Layer]:
        """Layers of one node, and its output noted."""
        made, value = self._layers(node)
        self.holds[node.name] = value
        self.sources[node.name] = (made[-1].name,) if made else self._upstream(node)
        return made

    def _upstream(self, node: Node) -> tuple[str, ...]:
        found = [name for item in node.inputs for name in self.sources.get(item, ())]
        return tuple(dict.fromkeys(found))

    def _given(self, node: Node) -> _Value:
        values = [
            self.holds.get(name, _Value("real")) for name in node.inputs if not name.startswith("parameter:")
        ]
        # the least special input decides: spikes beside real values are real values
        for kind in ("real", "unknown", "integers", "spikes"):
            same = [value for value in values if value.kind == kind]
            if same:
                bits, high = max(v.bits for v in same), max(v.max for v in same)
                return replace(same[0], bits=bits, max=high, sums=same[0].sums if len(values) == 1 else None)
        return _Value("unknown")

    def _layers(self, node: Node) -> tuple[list[Layer], _Value]:
        if node.op == "input":
            return [], self.input
        module, given, op = node.module, self._given(node), node.op
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            return self._weights(node, module, given)
        if isinstance(module, NormNeuron):
            return self._norm_neuron(node, module)
        if isinstance(module, Neuron):
            return [self._neuron(node, module, _name(node))], _Value("spikes")
        if op in ("batch_norm", "norm"):
            return [self._norm(node, _name(node))], _Value("real", bits=self._real_bits(node))
        if op == "relu":
            return [self._relu(node, _name(node))], _Value("real", bits=given.bits)
        if op in ("max_pool", "adaptive_max_pool", "rate_max_pool"):
            return [self._pool(node)], given
        if op in ("average_pool", "adaptive_average_pool", "mean"):
            return [self._pool(node)], self._mean(node, given)
        if op in ("add", "subtract"):
            return self._sum(node, given)
        if op == "sum":
            return [self._add(node, _name(node), given, node.in_shapes[0])], self._mean(node, given)
        if op in MOVES and _placed(node):
            return [], given
        if op in ("multiply", "scale") and given.kind in ("spikes", "integers"):
            return [], given  # SEW's AND and IAND of spikes: gates without arithmetic
        # made of parameters alone, whatever the image: no work of an inference
        if not any(name in self.holds for name in node.inputs):
            return [], _Value("unknown")
        # between real values lie values like them
        between = op == "upsample" and given.kind == "real"
        return [self._other(node)], _Value("real", bits=given.bits) if between else _Value("unknown")

    def _base(self, node: Node, name: str, **given: Any) -> Layer:
        shape = node.shape
        channels = shape[1] if len(shape) > 1 else 1
        size = _hw(shape)
        defaults: dict[str, Any] = {
            "name": name,
            "in_channels": channels,
            "out_channels": channels,
            "in_size": size,
            "out_size": size,
            "time_steps": self.steps,
            "executions": max(1, shape[0] // self.graph.batch) if shape else 1,
            "inputs": self._upstream(node),
            "operator": node.kind,
        }
        return Layer(**{**defaults, **given})

    def _weights(self, node: Node, module: nn.Module, given: _Value) -> tuple[list[Layer], _Value]:
        seen = self.seen[node.name]
        value, part = given.observed(seen), self.parts.get(node.path)
        # the first dimension is runs times images: T times as long where time was unfolded before
        shape, out = node.in_shapes[0], node.shape
        common: dict[str, Any] = {
            "executions": max(1, shape[0] // self.graph.batch),
            "input_kind": value.kind,
            "input_bits": value.bits,
            "input_max": value.max,
            "spikes_in": seen.total / self.graph.batch if value.kind != "real" else None,
            "nonzero_in": seen.nonzero / self.graph.batch,
            # folded weights leave an offset, which a norm's row counts where there is one
            "bias": module.bias is not None or (isinstance(part, FoldedLayer) and part.norm is None),
            "weight_bits": self._bits(node, "weight_bits", 32),
            "membrane_bits": self._bits(node, "membrane_bits", 32),
            "accumulator_bits": self.widths.accumulators.get(node.name),
        }
        if isinstance(module, nn.Linear):
            tokens = prod(shape[1:-1])
            geometry: dict[str, Any] = {"kind": "linear", "in_size": (tokens, 1), "out_size": (tokens, 1)}
            channels = (module.in_features, module.out_features)
        else:
            assert isinstance(module, (nn.Conv1d, nn.Conv2d))
            geometry = {
                "kind": "conv",
                "kernel_size": _two(node.settings["kernel"], 1),
                "stride": _two(node.settings["stride"], 1),
                "padding": _two(node.settings["padding"], 0),
                "far_padding": _two(node.settings["far_padding"], 0),
                "dilation": _two(node.settings["dilation"], 1),
                "groups": module.groups,
                "in_size": _hw(shape),
                "out_size": _hw(out),
            }
            channels = (module.in_channels, module.out_channels)
        layer = self._base(
            node, _name(node), in_channels=channels[0], out_channels=channels[1], **geometry, **common
        )
        made = [layer]
        if part is not None and part.rescale is not None:
            made.append(replace(self._norm(node, f"{layer.name}.rescale"), inputs=(layer.name,)))
        return made, _Value("real", bits=self._real_bits(node))

    def _norm_neuron(self, node: Node, module: NormNeuron) -> tuple[list[Layer], _Value]:
        name = _name(node)
        # Time unfolds inside an encoding neuron: its norm runs as often as its input comes.
        norm = replace(self._norm(node, name), executions=max(1, node.in_shapes[0][0] // self.graph.batch))
        made = [norm]
        if len(node.inputs) > 1:
            stream = self.holds.get(node.inputs[1], _Value("real"))
            made.append(self._add(node, f"{name}.residual", _Value("real", bits=stream.bits)))
        inner = module.neuron
        if isinstance(inner, Neuron):
            made.append(replace(self._neuron(node, inner, f"{name}.neuron"), inputs=(made[-1].name,)))
            return made, _Value("spikes")
        if isinstance(inner, nn.ReLU):
            made.append(replace(self._relu(node, f"{name}.neuron"), inputs=(made[-1].name,)))
        return made, _Value("real", bits=self._real_bits(node))

    def _neuron(self, node: Node, neuron: Neuron, name: str) -> Layer:
        if isinstance(neuron, Parallel) and neuron.binary:
            return self._parallel(node, neuron, name)
        if not neuron.priced:
            return self._base(node, name, kind="other", operator=type(neuron).__name__)
        return self._base(
            node, name, kind="neuron", neuron=type(neuron).__name__.lower(), leaky=neuron.leaky,
            encoding=neuron.encode,
            membrane_bits=self._bits(node, "membrane_bits", 32),
            potential_bits=self.widths.potentials.get(node.name),
        )  # fmt: skip

    def _parallel(self, node: Node, neuron: Parallel, name: str) -> Layer:
        current = self.widths.currents.get(node.name)
        kept = past(node, neuron, self.graph, self.steps, self._levels, current, self.quantization)
        if kept.source is not None:
            again = [_name(kept.source), f"{_name(kept.source)}.rescale"]
            again += [_name(node)] if isinstance(node.module, NormNeuron) else []
            self.passes |= {layer: max(kept.terms, self.passes.get(layer, 1.0)) for layer in again}
        return self._base(
            node, name, kind="neuron", neuron=neuron.kind, encoding=neuron.encode, terms=kept.terms,
            weight_bits=self._bits(node, "temporal_bits", 32), temporal_weights=neuron.whole().numel(),
            kept_steps=kept.steps, kept_values=kept.values, kept_bits=kept.bits, current_bits=current,
            potential_bits=self.widths.potentials.get(node.name),
        )  # fmt: skip

    def _levels(self, name: str) -> int | None:
        value = self.holds.get(name)
        if value is None:
            return None
        return value.max if value.kind in ("spikes", "integers") else value.sums

    def _relu(self, node: Node, name: str) -> Layer:
        return self._base(node, name, kind="neuron", neuron="relu")

    def _norm(self, node: Node, name: str) -> Layer:
        """A norm, or of a quantized layer without one the rescaling in its place."""
        bits = self._bits(node, "norm_bits", 32)
        part, stored = self.parts.get(node.path), None
        folded = part is not None and part.rescale is None
        if part is not None:
            multiplier = 0 if folded else MULTIPLIER_BITS if bits < 32 else 32
            # a layer's bias is in the offset, and its row has counted it
            stored = multiplier + (0 if self._biased(node, part) else OFFSET_BITS)
        return self._base(
            node, name, kind="norm", norm_bits=bits, membrane_bits=self._bits(node, "membrane_bits", 32),
            norm_stored_bits=stored, norm_folded=folded,
        )  # fmt: skip

    def _biased(self, node: Node, part: Any) -> bool:
        """Whether the layer whose sums a norm or rescaling reads has a bias."""
        if part.rescale is not None:
            return part.rescale.source.bias() is not None
        assert self.quantization is not None
        plan = self.quantization.plan
        layer: Any = self.graph[plan.op(str(node.path)).inputs[0]].module
        return layer.bias is not None

    def _pool(self, node: Node) -> Layer:
        return self._base(node, _name(node), kind="pool", in_size=_hw(node.in_shapes[0]))

    def _mean(self, node: Node, given: _Value) -> _Value:
        # A window of a pool, also where it overlaps others or reaches over the edge.
        window = prod(node.settings["kernel"]) if node.op == "average_pool" else None
        if node.in_shapes[0] == node.shape and window in (None, 1):
            return given
        most = given.max if given.kind in ("spikes", "integers") else given.sums
        if most is not None:
            before, after = node.in_shapes[0], node.shape
            values = window or -(-prod(before) // prod(after))
            if window is None and len(before) == len(after) == 4:
                # An adaptive pool's windows differ by one value along an axis that does not divide.
                values = prod(-(-a // b) + (a % b > 0) for a, b in zip(before[2:], after[2:]))
            return _Value("real", bits=(most * values).bit_length(), sums=most * values)
        return _Value("real", bits=given.bits)

    def _sum(self, node: Node, given: _Value) -> tuple[list[Layer], _Value]:
        terms = [name for name in node.inputs if name in self.holds]
        if len(terms) < 2:
            return [], replace(given, sums=None)  # a constant is added: a gate's 1 - s, or a bias
        if given.kind == "real":
            return [self._add(node, _name(node), given)], given
        high = sum(self.holds[name].max for name in terms)
        return [self._add(node, _name(node), given)], _Value(
            "unknown" if given.kind == "unknown" else "integers", max=high
        )

    def _add(self, node: Node, name: str, value: _Value, shape: tuple[int, ...] | None = None) -> Layer:
        """Additions, one for each element of ``shape`` (None: of the output)."""
        kind: InputKind = "real" if value.kind in ("real", "unknown") else value.kind  # type: ignore[assignment]
        size = (
            {}
            if shape is None
            else {"in_channels": shape[1], "out_channels": shape[1], "out_size": _hw(shape)}
        )
        return self._base(
            node, name, kind="add", input_kind=kind, input_bits=value.bits, input_max=value.max, **size
        )

    def _other(self, node: Node) -> Layer:
        return self._base(node, _name(node), kind="other")

    def _bits(self, node: Node, what: str, default: int) -> int:
        found = self.quantization.bits(node.path, what) if self.quantization is not None else None
        return default if found is None else int(found)

    def _real_bits(self, node: Node) -> int:
        return self._bits(node, "residual_bits", 32)


def _hw(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) == 4:
        return (shape[2], shape[3])
    return (prod(shape[2:]), 1) if len(shape) > 4 else ((1, shape[2]) if len(shape) == 3 else (1, 1))


def _two(value: tuple[int, ...], fill: int) -> tuple[int, int]:
    return (fill, value[0]) if len(value) == 1 else (value[0], value[1])


def _shortcuts(graph: Graph) -> set[str]:
    """Weight layers on the shorter side of a residual addition: with fewer of them since the fork."""
    ancestors: dict[str, frozenset[str]] = {}
    for node in graph:
        parents = [name for name in node.inputs if name in ancestors]
        ancestors[node.name] = frozenset(parents).union(*(ancestors[name] for name in parents))
    found: set[str] = set()
    for node in graph:
        branches = [name for name in node.inputs if name in ancestors]
        if len(branches) != 2 or node.op not in ("add", "subtract", "norm_neuron"):
            continue
        own = [ancestors[name] | {name} for name in branches]
        weights = [
            {n for n in mine - other if graph[n].op in ("conv", "linear")} for mine, other in (own, own[::-1])
        ]
        # of two equally long branches neither is the shortcut
        if len(weights[0]) != len(weights[1]):
            found |= {_name(graph[n]) for n in min(weights, key=len)}
    return found
