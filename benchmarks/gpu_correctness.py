"""Correctness on the device: every fused kernel and what else computes there, against float64 equations.

Currents are drawn so that no neuron of the float64 reference is within ``MARGIN`` of firing or of an edge of
its surrogate: then spikes have to be equal, and gradients equal up to the rounding of the type. In the
rehearsal the arithmetic runs uncompiled, because a CPU's compiler would take minutes.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu import attempt
from torch import Tensor, nn

from spikedistill.neurons import IF, LIF, PLIF, NormNeuron, compilation
from spikedistill.neurons.dynamics import Grid
from spikedistill.neurons.rates import Tape
from spikedistill.simulation import Simulation

T, N, C, SIZE = 3, 3, 8, (6, 5)
MARGIN = 2e-5
# Of the norm of what differs over the norm of the reference; bfloat16 gradients are rounded to 8 bits, twice.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 3e-5, torch.bfloat16: 1.5e-2}
GRIDS = {
    "grid": Grid(1 / 16, 16, (171, 8)),
    "grid, bits": Grid(1 / 16, 16, (171, 8), bits=4, shift=2),
    "grid, leak first": Grid(1 / 16, 16, (171, 8), leak_first=True),
    "grid, bits, leak first": Grid(0.07, 14, (1, 1), bits=4, shift=2, leak_first=True),
}


@dataclass(frozen=True)
class Case:
    """A neuron, what stands around it, and the shape that it sees."""

    neuron: Callable[..., Any] = LIF
    options: dict[str, Any] = field(default_factory=dict)
    norm: bool = True
    last: bool = True  # channels last
    residual: bool = False
    membrane: bool = False
    rates: bool = False  # the two passes of rate-based backpropagation
    training: bool = True
    size: tuple[int, ...] = SIZE
    grid: Grid | None = None

    def layer(self) -> nn.Module:
        """As it is at the start."""
        neuron = self.neuron(**{"time_steps": T, **self.options})
        neuron.grid = self.grid
        if not self.norm:
            return neuron.train(self.training)
        layer = NormNeuron(C, neuron)
        with torch.no_grad():
            layer.weight.uniform_(0.5, 2)
            layer.bias.uniform_(-0.5, 1)
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
        return layer.train(self.training)


def cases() -> dict[str, Case]:
    """Every reset, surrogate, layout, residual, capture, constant current, grid and learned constant."""
    atan, triangle = {"surrogate": "atan"}, {"surrogate": "triangle"}
    found = {f"reset {reset}": Case(options={"reset": reset}) for reset in ("hard", "soft", None)}
    for surrogate in ("atan", "sigmoid", "triangle", "rectangle", "fast_sigmoid"):
        found[f"surrogate {surrogate}"] = Case(options={"surrogate": surrogate, "reset": "soft"})
    found |= {
        "channels first": Case(options=atan, last=False),
        "no places": Case(options=atan, size=()),
        "residual": Case(options=triangle, residual=True),
        "residual, channels first": Case(options=triangle, residual=True, last=False),
        "encode": Case(options={"encode": True}),
        "encode, channels first": Case(options={"encode": True}, last=False),
        "membrane": Case(options=triangle, membrane=True),
        "evaluation": Case(training=False),
        "initial": Case(IF, {"initial": 0.5, "reset": "soft"}),
        "PLIF": Case(PLIF),
        "PLIF, residual, membrane": Case(PLIF, residual=True, membrane=True),
        "attached, hard": Case(options={"detach_reset": False}),
        "attached, soft": Case(options={"detach_reset": False, "reset": "soft"}),
        "reset by two": Case(options={"reset": "soft", "reset_by": 2.0}),
        "smooth": Case(options={"smooth": True, "detach_reset": False, "surrogate": "sigmoid"}),
        "alone": Case(norm=False),
        "alone, channels first": Case(norm=False, last=False),
        "alone, soft": Case(options={"reset": "soft"}, norm=False),
        "alone, encode": Case(options={"encode": True}, norm=False),
        "alone, membrane": Case(norm=False, membrane=True),
        "alone, PLIF": Case(PLIF, norm=False),
    }
    found |= {
        "rates, hard": Case(rates=True),
        "rates, soft, channels first": Case(options={"reset": "soft"}, rates=True, last=False),
        "rates, residual": Case(options=triangle, rates=True, residual=True),
        "rates, encode": Case(options={"encode": True}, rates=True),
        "rates, no leak": Case(IF, {"initial": 0.5, "reset": "soft"}, rates=True),
        "rates, alone": Case(options={"reset": None}, norm=False, rates=True),
    }
    for name, grid in GRIDS.items():
        found[name] = Case(options={"reset": "soft"}, norm=False, grid=grid)
    found["grid, hard, encode"] = Case(options={"encode": True}, norm=False, grid=GRIDS["grid, bits"])
    return found


def drawn(case: Case, seed: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Current and, where there is one, residual; on a grid whole numbers."""
    torch.manual_seed(seed)
    rows = N if case.options.get("encode") else T * N
    found = []
    for _ in range(2 if case.residual else 1):
        x = (
            torch.randn(rows, C, *case.size)
            if case.grid is None
            else torch.randint(-30, 40, (rows, C, *case.size))
        )
        x = x.to(device=device, dtype=dtype)
        found.append(x.to(memory_format=torch.channels_last) if case.last and x.dim() == 4 else x)
    return found


def results(layer: nn.Module, given: list[Tensor], way: Any, case: Case) -> dict[str, Tensor]:
    """Spikes, membranes or rates, and all gradients by name."""
    membrane = case.membrane
    leaves = [x.detach().clone().requires_grad_() for x in given]
    layer.zero_grad()
    insides = [("", 0, "membrane")] if membrane else []
    if case.rates:
        tape = Tape(N)
        with compilation.use(way), torch.no_grad(), Simulation(layer, T, tape=tape):
            spikes = layer(*leaves)
        tape.recording = False
        leaves = [tape.average(leaf.detach()).requires_grad_() for leaf in leaves]
        with compilation.use(way), Simulation(layer, 1, tape=tape) as sim:
            out = layer(*leaves)
    else:
        with compilation.use(way), Simulation(layer, T, insides=insides) as sim:
            spikes = out = layer(*leaves)
    torch.manual_seed(99)
    weights = torch.randint(-8, 9, out.shape).to(out.device) / 8  # which every type holds
    loss = (out.double() * weights).sum()
    found = {"spikes": spikes, "out": out}
    for h in sim.captured.values():
        found["membranes"] = h
        if membrane:
            loss = loss + (h.double() * weights.view_as(h)).sum()
    loss.backward()
    found |= {name: leaf.grad for name, leaf in zip(("current", "residual"), leaves) if leaf.grad is not None}
    found |= {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    found |= {name: b for name, b in layer.named_buffers() if b.is_floating_point()}
    return {name: value.detach() for name, value in found.items()}


def safe(case: Case, layer: nn.Module, given: list[Tensor]) -> bool:
    """Whether no neuron of the float64 reference is so near an edge that rounding may decide."""
    if case.grid is not None or case.options.get("smooth"):
        return True
    with torch.no_grad(), compilation.eager(), Simulation(layer, T, insides=[("", 0, "membrane")]) as sim:
        copy.deepcopy(layer)(*given)
    if not sim.captured:  # the copy has another identity: its path is the same, and so is what it files
        raise RuntimeError("no membrane was captured")
    u = next(iter(sim.captured.values())) - 1.0
    return bool(torch.minimum(u.abs(), (u.abs() - 0.5).abs()).min() > MARGIN)


def compare(case: Case, device: str, dtype: torch.dtype, way: str) -> dict[str, Any]:
    """One row: how many spikes differ, and the largest error of anything, relative to the reference."""
    torch.manual_seed(1)
    layer = case.layer().to(device)
    reference = copy.deepcopy(layer).double()
    if dtype == torch.float64:
        layer = layer.double()
    for seed in range(100):
        given = drawn(case, seed, device, dtype)
        wide = [x.double() for x in given]
        probe = copy.deepcopy(reference)
        if safe(case, probe, wide):
            break
    theirs, mine = results(reference, wide, "eager", case), results(layer, given, way, case)
    if set(mine) != set(theirs):
        return {"ok": False, "error": f"gradients of {sorted(set(mine) ^ set(theirs))} are missing"}
    differ = 0 if case.options.get("smooth") else int((mine["spikes"].double() != theirs["spikes"]).sum())
    errors = {
        name: float((mine[name].double() - b).norm() / (b.norm() + 1e-12)) for name, b in theirs.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    good = differ == 0 and errors[worst] <= TOLERANCES[dtype] and compilation.failure() is None
    fired = float(theirs["spikes"].mean())
    return {"ok": good, "spikes_differ": differ, "error": errors[worst], "of": worst, "fired": fired,
    "draw": seed,
            **({"compiling": compilation.failure()} if compilation.failure() else {})}  # fmt: skip


def kernels(device: str, dtype: torch.dtype, way: str, every: int = 1) -> None:
    """All cases in one type; the hand-derived arithmetic uncompiled too where that is exact."""
    for i, (name, case) in enumerate(cases().items()):
        if dtype == torch.bfloat16 and case.grid is not None:
            continue  # codes are floats of at least 32 bits
        if i % every == 0:
            attempt(name, compare, case, device, dtype, way)
        if dtype == torch.float64 and way != "uncompiled":
            attempt(f"{name}, uncompiled", compare, case, device, dtype, "uncompiled")


def gradcheck(device: str, way: str) -> None:
    """Smooth neurons against finite differences in float64."""
    for name, case in (
        ("hard", Case()), ("soft", Case(options={"reset": "soft"})),
        ("no reset", Case(options={"reset": None})),
        ("residual", Case(residual=True)), ("encode", Case(options={"encode": True})), ("PLIF", Case(PLIF)),
        ("alone", Case(norm=False)), ("channels first", Case(last=False)),
    ):  # fmt: skip
        attempt(f"gradcheck {name}", differences, case, device, way)


def differences(case: Case, device: str, way: Any) -> dict[str, Any]:
    """One row of gradcheck: of the current, the residual and every parameter."""
    torch.manual_seed(0)
    options = {**case.options, "smooth": True, "detach_reset": False, "surrogate": "sigmoid", "time_steps": T}
    small = Case(case.neuron, options, case.norm, case.last, case.residual, size=(3, 2))
    layer = small.layer().to(device).double()
    names, values = zip(*layer.named_parameters()) if list(layer.parameters()) else ((), ())
    given = [x.requires_grad_() for x in drawn(small, 0, device, torch.float64)]

    def function(*tensors: Tensor) -> Tensor:
        leaves = dict(zip(names, tensors[len(given) :]))
        with compilation.use(way), Simulation(layer, T):
            return torch.func.functional_call(layer, leaves, tuple(tensors[: len(given)]))

    leaves = [*given, *(v.detach().clone().requires_grad_() for v in values)]
    return {"ok": torch.autograd.gradcheck(function, leaves, fast_mode=True, nondet_tol=1e-9)}


def run(name: str, device: str, quick: bool) -> None:
    """One part."""
    way = "uncompiled" if quick else "compiled"
    kind = name.removeprefix("correctness ")
    if kind in ("networks", "compile counts"):
        import gpu_networks

        if kind == "networks":
            gpu_networks.networks(device, quick)
        else:
            gpu_networks.counts(device)
    else:
        # Compiling in float64 takes as long as in the types that are trained in: every third case has to do.
        few = kind == "float64" or (quick and kind != "float32")
        kernels(device, getattr(torch, kind), way, every=3 if few else 1)
        if kind == "float64":
            gradcheck(device, way)
