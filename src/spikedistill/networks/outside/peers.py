# ruff: noqa: SIM905  (lists of words)
"""Neurons and layers of SpikingJelly, snnTorch and Norse, said in ours.

Nothing of theirs is imported: classes go by name.

Each neuron is exactly one of ours, or is refused by its name:

    SpikingJelly  IFNode, LIFNode, ParametricLIFNode     fires at H >= v_threshold; V is counted from v_reset
    snnTorch      Leaky                                  fires at H > threshold; "subtract" takes an
                                                         undecayed threshold, one step later: a
                                                         soft reset by 1/beta thresholds
    Norse         LIFBoxCell                             fires at H > v_th; V is counted from v_leak

``H > threshold`` is ``H >= `` the next float32 above the threshold.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import SpikedistillError
from ...neurons import IF, LIF, PLIF, Neuron, Surrogate
from ...neurons.dynamics import Reset
from ...terminal import amount

LIBRARIES = ("spikingjelly", "snntorch", "norse")
KNOWN = "IFNode, LIFNode, ParametricLIFNode (SpikingJelly), Leaky (snnTorch) and LIFBoxCell (Norse)"
# Classes by whose descendants a module is known to keep a state of its own.
STATEFUL = ("MemoryModule", "SpikingNeuron", "SNNCell", "SNNRecurrentCell", "SNN", "SNNRecurrent", "Lift")
SECOND = "keeps a second state beside the membrane"
REASONS = {
    **dict.fromkeys("Synaptic Alpha RSynaptic LIFCell LIF LIFRecurrentCell LIFRecurrent LIFExCell".split(),
                    f"{SECOND}, a synaptic current"),
    **dict.fromkeys("IzhikevichNode AdaptBaseNode LIFAdExCell LSNNCell IzhikevichCell".split(),
                    f"{SECOND}, an adaptation"),
    **dict.fromkeys("RLeaky LIFBoxRecurrentCell".split(), "feeds its spikes back"),
    "Lift": "loops over the first dimension; leave it out: a layer of ours takes all steps at once",
}  # fmt: skip
UNREAD = "the network reads the membrane of a neuron, which has no form here; choose its spikes with output="
CONTAINERS = ("MultiStepContainer", "SeqToANNContainer", "StepModeContainer")
ABOVE = "firing at H > threshold there: the threshold here is the next float32, so that ties fall alike"


@dataclass(frozen=True)
class Cell:
    """A peer's neuron: ours, and whether its call returns (spikes, state)."""

    neuron: Neuron
    returns_state: bool = False
    learned: bool = False  # its decay is a rounded parameter of ours
    above: bool = False  # it fires at H > threshold


class Placeholder(nn.Module):
    """Where a neuron will stand; one node of a trace."""

    graph_leaf = True

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = [cell]  # no submodule

    def forward(self, x: Tensor) -> Tensor:
        # A tensor of its own: ``x`` itself would count as this node's output for all its readers.
        return x.clone()


class Unread:
    """What stands for the state that a peer's neuron returns: to be passed on, not to be read."""

    def __getattr__(self, name: str) -> Any:
        # Copies look for such names and must find none; __torch_function__ means that torch computes with it.
        if name.startswith("__") and name.endswith("__") and name != "__torch_function__":
            raise AttributeError(name)
        raise SpikedistillError(UNREAD)

    def __getitem__(self, index: Any) -> Any:
        raise SpikedistillError(UNREAD)


class Stateful(nn.Module):
    """A neuron that is called with its state and returns it, as snnTorch's and Norse's are."""

    def __init__(self, site: nn.Module) -> None:
        super().__init__()
        self.site = site

    def forward(self, x: Tensor, *states: Any, **named: Any) -> tuple[Tensor, Unread]:
        return self.site(x), Unread()


def library(module: nn.Module) -> str | None:
    """Which peer's class a module is."""
    name = type(module).__module__.partition(".")[0]
    return name if name in LIBRARIES else None


def ancestors(module: nn.Module) -> set[str]:
    """Names of a peer's classes that a module descends from."""
    return {c.__name__ for c in type(module).__mro__ if c.__module__.partition(".")[0] in LIBRARIES}


def is_neuron(module: nn.Module) -> bool:
    """Whether a module is one of the neurons that have a form here."""
    return library(module) is not None and type(module).__name__ in NEURONS


def spikes(module: nn.Module) -> bool:
    """Whether a module is a neuron of a peer's, of whatever kind."""
    bases = {
        "BaseNode",
        "SimpleBaseNode",
        "SpikingNeuron",
        "SNNCell",
        "SNNRecurrentCell",
        "SNN",
        "SNNRecurrent",
    }
    return bool(ancestors(module) & bases)


def layer_of(module: nn.Module) -> type[nn.Module] | None:
    """torch's class of a stateless layer of SpikingJelly; None for anything else."""
    if library(module) != "spikingjelly" or ".layer." not in f"{type(module).__module__}.":
        return None
    name = type(module).__name__
    if name in CONTAINERS:
        return nn.Sequential
    if name.startswith("ThresholdDependentBatchNorm"):
        return getattr(nn, name.removeprefix("ThresholdDependent"))  # its alpha is in its weights
    found = getattr(nn, name, None)
    return (
        found
        if found is not None and (issubclass(type(module), found) or name.startswith("Dropout"))
        else None
    )


def translate(model: nn.Module) -> tuple[dict[str, Cell], list[str]]:
    """Change a peer's model in place: layers become torch's, neurons :class:`Placeholder`; returns both.

    Raises: SpikedistillError naming path, class and reason of what has no form here.
    """
    wrong = [words for path, m in model.named_modules() if (words := _refusal(path, m))]
    if wrong:
        raise SpikedistillError("these keep the network from being adopted:\n  " + "\n  ".join(wrong[:8]))
    cells: dict[str, Cell] = {}
    notes: list[str] = []
    made: dict[int, nn.Module] = {}
    # With duplicates: a neuron that stands at two paths is exchanged at both, by the same one.
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if is_neuron(module):
            if id(module) not in made:
                cell = _cell(path, module, notes)
                site = Placeholder(cell)
                made[id(module)] = Stateful(site) if cell.returns_state else site
                cells[path] = cell
            if not path:
                raise SpikedistillError("the network is a single neuron; give a network")
            model.set_submodule(path, made[id(module)])
        elif (plain := layer_of(module)) is not None:
            if type(module).__name__ == "Dropout" or type(module).__name__ == "Dropout2d":
                notes.append(
                    f"{path}: SpikingJelly's dropout keeps its mask over time; here each step draws its own"
                )
                model.set_submodule(path, plain(module.p))
                continue
            # In place: parameters, buffers, hooks and every path that names the layer stay.
            module.__class__ = plain
            module.__dict__["step_mode"] = "s"
        elif type(module).__name__ == "VotingLayer" and library(module):
            size: Any = module.voting_size
            model.set_submodule(path, nn.AvgPool1d(size, size))
        elif hasattr(module, "step_mode"):
            module.step_mode = "s"
    late = sum(c.above for c in cells.values())
    if late:
        notes.append(f"{amount(late, 'neuron')} {ABOVE}")
    return cells, notes


def _refusal(path: str, module: nn.Module) -> str | None:
    names = ancestors(module)
    kind = type(module).__name__
    if is_neuron(module) or kind in ("Dropout", "Dropout2d") or not names.intersection(STATEFUL):
        return None
    if library(module) is None:
        base = next(c.__name__ for c in type(module).__mro__ if c.__module__.partition(".")[0] in LIBRARIES)
        return f"{path}: {kind} is a {base} with equations of its own"
    return f"{path}: {kind} {REASONS.get(kind, f'is none of {KNOWN}')}"


def _cell(path: str, module: Any, notes: list[str]) -> Cell:
    try:
        return NEURONS[type(module).__name__](module, notes, path)
    except SpikedistillError as error:
        raise SpikedistillError(f"{path}: {type(module).__name__} {error}") from None


def _above(threshold: float) -> float:
    """The next float32: what ``H >= it`` and ``H > threshold`` agree on."""
    return float(np.nextafter(np.float32(threshold), np.float32(np.inf)))


def _number(value: Any, name: str) -> float:
    """A parameter that is one number, whatever holds it."""
    given = torch.as_tensor(value).detach().flatten()
    if not given.numel() or bool((given != given[0]).any()):
        raise SpikedistillError(f"has a {name} for each neuron; a layer here has one")
    return float(given[0])


# -- SpikingJelly


def _jelly(m: Any, notes: list[str], path: str) -> Cell:
    kind = type(m).__name__
    if not getattr(m.surrogate_function, "spiking", True):
        raise SpikedistillError("gives its surrogate's primitive (spiking=False), no spikes")
    rest = 0.0 if m.v_reset is None else float(m.v_reset)
    threshold = float(m.v_threshold) - rest
    if not threshold > 0:
        raise SpikedistillError(f"has v_threshold {m.v_threshold} that is not above v_reset {m.v_reset}")
    if rest:
        notes.append(f"{path}: membrane and threshold are counted from v_reset = {rest:g}")
    reset: Reset = "soft" if m.v_reset is None else "hard"
    common: dict[str, Any] = {
        "threshold": threshold, "reset": reset, "surrogate": _jelly_surrogate(m.surrogate_function, notes,
        path),
        "detach_reset": bool(m.detach_reset),
    }  # fmt: skip
    if kind == "IFNode":
        return Cell(IF(**common))
    gain = None if m.decay_input else 1.0
    if kind == "LIFNode":
        return Cell(LIF(tau=float(m.tau), gain=gain, **common))
    neuron = PLIF(gain=gain, **common)
    # SpikingJelly's w is ours: 1/tau = sigmoid(w).
    neuron.w = nn.Parameter(m.w.detach().clone())
    return Cell(neuron)


def _jelly_surrogate(function: Any, notes: list[str], path: str) -> Surrogate:
    names = {"ATan": "atan", "Sigmoid": "sigmoid", "PiecewiseQuadratic": "triangle"}
    kind = type(function).__name__
    if kind in names:
        return Surrogate(names[kind], float(function.alpha))
    return _other_surrogate(kind, notes, path)


def _other_surrogate(kind: str, notes: list[str], path: str) -> Surrogate:
    notes.append(f"{path}: the surrogate {kind} has no form here; gradients are those of atan")
    return Surrogate()


# -- snnTorch


def _leaky(m: Any, notes: list[str], path: str) -> Cell:
    for name, plain in (("inhibition", False), ("state_quant", False), ("graded_spikes_factor", 1)):
        if _differs(getattr(m, name, plain), plain):
            raise SpikedistillError(f"has {name}; leave it out")
    # Clamped, as snnTorch does in every pass.
    beta, threshold = min(1.0, max(0.0, _number(m.beta, "beta"))), _number(m.threshold, "threshold")
    mechanism = ("subtract", "zero", "none")[int(m.reset_mechanism_val)]
    reset: Reset = {"subtract": "soft", "zero": "hard", "none": None}[mechanism]
    if mechanism == "subtract" and not getattr(m, "reset_delay", True):
        raise SpikedistillError(
            "subtracts at once (reset_delay=False), and again later; take reset_delay=True"
        )
    if mechanism == "subtract" and beta == 0:
        raise SpikedistillError(
            "has beta 0 and subtracts the threshold of a forgotten step; take reset_mechanism='zero'"
        )
    if not threshold > 0:
        raise SpikedistillError(f"has threshold {threshold}; it must be more than 0")
    above = _above(threshold)
    common: dict[str, Any] = {
        "threshold": above, "reset": reset, "surrogate": _torch_surrogate(m.spike_grad, notes, path),
        "detach_reset": True,
        # In thresholds of ours (``above``), and before the decay that leaves beta of it.
        "reset_by": threshold / (beta * above) if mechanism == "subtract" else 1.0,
    }  # fmt: skip
    if isinstance(m.threshold, nn.Parameter):
        notes.append(f"{path}: its learned threshold {threshold:g} stays as it is")
    state = bool(m.output) or not m.init_hidden
    if not (isinstance(m.beta, nn.Parameter) and 0 < beta < 1):
        return Cell(LIF(decay=beta, **common), state, above=True)
    neuron = PLIF(gain=1.0, **common)
    # decay = 1 - sigmoid(w) = beta
    neuron.w = nn.Parameter(torch.tensor(math.log((1 - beta) / beta), device=m.beta.device))
    return Cell(neuron, state, learned=True, above=True)


def _differs(value: Any, plain: Any) -> bool:
    if isinstance(value, Tensor):
        return bool((value != plain).any())
    return bool(value) if plain is False else value != plain


def _torch_surrogate(function: Any, notes: list[str], path: str) -> Surrogate:
    kind = getattr(function, "__qualname__", type(function).__name__).partition(".")[0]
    # snnTorch's surrogates are closures: their slope is a variable that they enclose.
    kept = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    if kind == "atan":
        return Surrogate("atan", float(kept["alpha"]))
    if kind in ("fast_sigmoid", "sigmoid"):
        return Surrogate(kind, float(kept["slope"]))
    return _other_surrogate(kind, notes, path)


# -- Norse


def _box(m: Any, notes: list[str], path: str) -> Cell:
    p = m.p
    leak, rest, threshold = (_number(getattr(p, n), n) for n in ("v_leak", "v_reset", "v_th"))
    gain = _number(m.dt * torch.as_tensor(p.tau_mem_inv), "tau_mem_inv")
    method = getattr(p.reset_method, "__name__", "")
    if method not in ("reset_value", "reset_subtract"):
        raise SpikedistillError(f"resets by {method or p.reset_method!r}; take reset_value or reset_subtract")
    if method == "reset_value" and rest != leak:
        raise SpikedistillError(f"is reset to {rest:g} and leaks to {leak:g}; here both are the same")
    if not threshold > leak or not 0 < gain <= 1:
        raise SpikedistillError(
            f"has v_th {threshold:g}, v_leak {leak:g} and dt * tau_mem_inv {gain:g}; v_th must be above "
            "v_leak, the product between 0 and 1"
        )
    if leak:
        notes.append(f"{path}: membrane and threshold are counted from v_leak = {leak:g}")
    above = _above(threshold - leak)
    if p.method == "super":
        surrogate = Surrogate("fast_sigmoid", _number(p.alpha, "alpha"))
    else:
        surrogate = _other_surrogate(str(p.method), notes, path)
    soft = method == "reset_subtract"
    return Cell(
        LIF(
            decay=1 - gain, gain=gain, threshold=above, reset="soft" if soft else "hard", surrogate=surrogate,
            detach_reset=False, reset_by=threshold / above if soft else 1.0,
        ),
        returns_state=True,
        above=True,
    )  # fmt: skip


NEURONS: dict[str, Callable[[Any, list[str], str], Cell]] = {
    "IFNode": _jelly, "LIFNode": _jelly, "ParametricLIFNode": _jelly, "Leaky": _leaky, "LIFBoxCell": _box,
}  # fmt: skip
