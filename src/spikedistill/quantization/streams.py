"""Which edges share a grid: groups of norms and layers, sums and concatenations of edges."""

from dataclasses import replace
from typing import Any

from ..errors import SpikedistillError
from ..networks.operations import Node
from ..union_find import UnionFind
from .plan import Edge, GroupReader, Plan, is_power_of_two, refuse


class Streams:
    """The groups of norms and layers that write on one grid, in the plan that is being made.

    ``finest``: the smallest step that a stream can have; ranges of spikes that join one are bounded by it.
    """

    def __init__(self, plan: Plan, finest: float) -> None:
        self.plan, self.finest = plan, finest
        self.groups: UnionFind[int] = UnionFind()
        self.count = 0
        self.pooled: list[tuple[int, int, Node]] = []  # (group, divisor, node) of pools in streams

    def group(self, path: str) -> int:
        """A new group, of one norm or layer."""
        group, self.count = self.count, self.count + 1
        self.plan.groups[group], self.plan.readers[group] = [path], []
        return group

    def union(self, a: int, b: int) -> None:
        """Both write on one grid."""
        a, b = sorted((self.groups.root(a), self.groups.root(b)))
        if self.groups.union(a, b):
            self.plan.groups[a] += self.plan.groups.pop(b)
            self.plan.readers[a] += self.plan.readers.pop(b)
            if b in self.plan.real:
                self.real(a, self.plan.real.pop(b))

    def real(self, group: int, most: float = 1.0) -> None:
        """Floats of this group are real values; its step is at most ``most``."""
        root = self.groups.root(group)
        self.plan.real[root] = min(most, self.plan.real.get(root, most))

    def read_by(self, edge: Edge, kind: Any, path: str) -> None:
        """A group's reader."""
        self.plan.readers[self.groups.root(edge.group)].append(GroupReader(kind, path))

    def join(self, node: Node, edges: list[Edge]) -> tuple[Edge, list[tuple[int, int]]]:
        """The grid that ``edges`` share, and the range of each on it.

        Equal steps are one grid. Otherwise all must be real values in steps of powers of two: the finest is
        the grid, and a stream that spikes join carries real values from then on.
        """
        first, streams = edges[0], [e for e in edges if e.base == "norm"]
        for stream in streams[1:]:
            self.union(streams[0].group, stream.group)
        unequal = {(e.base, e.step, e.share, e.fraction) for e in edges}
        if len(unequal) == 1 and first.base != "layer":
            return first, [(e.low, e.high) for e in edges]
        if not all(e.real or (e.base == "norm" and is_power_of_two(e.share)) for e in edges):
            raise refuse(node, "joins codes whose steps are not powers of two apart")
        if not streams:
            value = min(e.fraction for e in edges)
            factors = [e.fraction / value for e in edges]
            grid = Edge("step", 0, 0, step=1.0, share=value, fraction=value)
        else:
            share = min(e.share for e in streams)
            for e in edges:
                self.real(streams[0].group, 1.0 if e.base == "norm" else e.fraction)
            # A stream's step is measured later: a spike's code is bounded by the finest that it can have.
            factors = [
                e.share / share if e.base == "norm" else e.fraction / (self.finest * share) for e in edges
            ]
            grid = replace(streams[0], share=share)
        return grid, [(int(e.low * f), int(e.high * f)) for e, f in zip(edges, factors)]

    def finish(self) -> None:
        """Groups as they have become; refuses what only the whole shows."""
        plan = self.plan
        # Edges carry the group that they were made with; joins have merged some since.
        plan.edges = {
            name: replace(edge, group=self.groups.root(edge.group)) if edge.base == "norm" else edge
            for name, edge in plan.edges.items()
        }
        for group, divisor, node in self.pooled:
            if self.groups.root(group) in plan.real and not is_power_of_two(divisor):
                raise refuse(
                    node,
                    f"divides a stream that others join by {divisor}; only by powers of two it stays exact",
                )
        for group, readers in plan.readers.items():
            alone = len(readers) == 1 and group not in plan.real
            if not alone and any(kind == "residual" for kind, _ in readers):
                path = next(path for kind, path in readers if kind == "residual")
                raise SpikedistillError(
                    f"cannot quantize {path}: its residual, from {plan.groups[group][0]}, is read or joined "
                    "by others too and has no grid of its own"
                )
