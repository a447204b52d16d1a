"""The figures of one pricing."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .config import Config


@dataclass(frozen=True)
class Unpriced:
    """A layer that has no price here, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class LayerPrice:
    """Price of one layer per inference: PEs, own tiles, energy (pJ) in all and by component, times (ns)."""

    name: str
    kind: str
    pes: int
    tiles: int
    energy_pj: float
    latency_ns: float | None
    start_ns: float | None
    end_ns: float | None
    components: dict[str, float]


@dataclass(frozen=True)
class HardwareReport:
    """Figures of one network on one chip, per inference of one image.

    ``energy_pj``, ``latency_ns``, ``area_um2``; ``edap`` in uJ ms mm2; ``dense_operations`` are dense (2 a
    MAC, zero inputs included), so are ``tops``, ``tops_per_w``, ``tops_per_mm2``. ``components``: energy by
    component, pJ; ``area``: area by component, um2. A figure that the published code cannot give is None and
    ``reasons`` says why; ``unpriced`` lists layers without a price; ``notes`` what a reader should know.
    """

    mode: str
    activity: str
    pes: int | None
    tiles: int | None
    energy_pj: float
    latency_ns: float | None
    area_um2: float | None
    edap: float | None
    tops: float | None
    tops_per_w: float | None
    tops_per_mm2: float | None
    dense_operations: int
    layers: list[LayerPrice]
    components: dict[str, float]
    area: dict[str, float] | None
    unpriced: list[Unpriced]
    reasons: dict[str, str]
    notes: list[str]

    @classmethod
    def build(
        cls,
        *,
        config: Config,
        pes: int | None,
        tiles: int | None,
        latency_ns: float | None,
        area: dict[str, float] | None,
        dense_operations: int,
        layers: list[LayerPrice],
        components: dict[str, float],
        unpriced: Sequence[Unpriced],
        reasons: dict[str, str],
        notes: list[str],
    ) -> "HardwareReport":
        """Derive EDAP and the TOPS figures; each is None where a part of it is."""
        energy = sum(layer.energy_pj for layer in layers)
        area_um2 = sum(area.values()) if area is not None else None
        # operations a ns are 1e9 a second, 1e-3 TOPS
        tops = dense_operations / latency_ns / 1e3 if latency_ns is not None else None
        edap = (
            # pJ ns um2 to uJ ms mm2
            energy * latency_ns * area_um2 * 1e-18
            if latency_ns is not None and area_um2 is not None
            else None
        )
        for figure, value, parts in (
            ("edap", edap, ("latency_ns", "area_um2")),
            ("tops", tops, ("latency_ns",)),
            # edap stands in: it needs the same two figures
            ("tops_per_mm2", edap, ("latency_ns", "area_um2")),
        ):
            if value is None:
                reasons[figure] = "needs " + " and ".join(part for part in parts if part in reasons)
        return cls(
            mode=config.mode,
            activity=config.activity,
            pes=pes,
            tiles=tiles,
            energy_pj=energy,
            latency_ns=latency_ns,
            area_um2=area_um2,
            edap=edap,
            tops=tops,
            tops_per_w=dense_operations / energy if energy else None,
            tops_per_mm2=tops / area_um2 * 1e6 if tops is not None and area_um2 else None,
            dense_operations=dense_operations,
            layers=layers,
            components=components,
            area=area,
            unpriced=list(unpriced),
            reasons=reasons,
            notes=notes,
        )

    @property
    def complete(self) -> bool:
        """Whether every figure has a value."""
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return asdict(self)
