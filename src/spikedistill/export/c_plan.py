"""What a C file needs to know of an integer network: every value's shape, range and place in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from .c_numbers import Range

Shape = tuple[int, ...]


# by identity: two buffers of one size are two, and both are keys in `memory`
@dataclass(eq=False)
class Buffer:
    """Memory that some calls share: ``size`` entries of ``bits``; ``kept``: from step to step."""

    size: int
    bits: int
    kept: bool = False
    offset: int = -1

    def __str__(self) -> str:
        name = "kept" if self.kept else "memory"
        return f"{name}_{self.bits} + {self.offset}" if self.offset else f"{name}_{self.bits}"


@dataclass
class Value:
    """What an operation gives for one image at one step; ``last``: its channels stand last in memory."""

    buffer: Buffer
    shape: Shape
    range: Range
    stepped: bool
    last: bool = False

    @property
    def bits(self) -> int:
        """Width of its type."""
        return self.buffer.bits

    @property
    def size(self) -> int:
        """Entries."""
        return prod(self.shape)

    @property
    def strides(self) -> list[int]:
        """Of each dimension."""
        order = [*range(1, len(self.shape)), 0] if self.last else list(range(len(self.shape)))
        strides, step = [0] * len(self.shape), 1
        for d in reversed(order):
            strides[d] = step
            step *= self.shape[d]
        return strides

    @property
    def view(self) -> str:
        """A ``struct view``'s numbers."""
        channels = self.shape[0] if self.shape else 1
        places = self.size // channels
        stand = (1, channels) if self.last else (places, 1)
        return "{" + ", ".join(map(str, (channels, places, *stand))) + "}"


@dataclass
class Call:
    """One call in C; ``arguments``: numbers, names and buffers."""

    function: str
    arguments: Sequence[Any]
    comment: str = ""

    def __str__(self) -> str:
        return f"{self.function}({', '.join(map(str, self.arguments))});"


@dataclass
class Program:
    """Calls: at the start of an image (``once``), at each step (``step``), the constants that they read.

    ``kept``: membranes, with the code that they start at.
    """

    once: list[Call] = field(default_factory=list)
    step: list[Call] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    kept: list[tuple[Buffer, int]] = field(default_factory=list)

    def starts(self) -> list[tuple[Buffer, int]]:
        """Stretches of membranes that start with one value."""
        found: list[tuple[Buffer, int]] = []
        for buffer, initial in sorted(self.kept, key=lambda item: (item[0].bits, item[0].offset)):
            last, value = found[-1] if found else (Buffer(0, 0), 0)
            if last.bits == buffer.bits and value == initial:
                last.size += buffer.size
            else:
                found.append((Buffer(buffer.size, buffer.bits, True, buffer.offset), initial))
        return found

    def call(self, stepped: bool, function: str, *arguments: Any, comment: str = "") -> None:
        """One more call."""
        (self.step if stepped else self.once).append(Call(function, arguments, comment))

    def memory(self) -> dict[str, int]:
        """Give every buffer its place; entries by array."""
        lives: dict[Buffer, list[int]] = {}
        calls = [*self.once, *self.step]
        for i, call in enumerate(calls):
            for buffer in call.arguments:
                if isinstance(buffer, Buffer):
                    life = lives.setdefault(buffer, [i, i])
                    life[1] = i
                    if life[0] < len(self.once) <= i:
                        life[1] = len(calls)  # made once, read at every step
        sizes: dict[str, int] = {}
        for buffer, _ in self.kept:
            buffer.offset = sizes.get(f"kept_{buffer.bits}", 0)
            sizes[f"kept_{buffer.bits}"] = buffer.offset + buffer.size
        placed: list[tuple[Buffer, list[int]]] = []
        free = [(buffer, life) for buffer, life in lives.items() if not buffer.kept]
        # the largest first: small ones find room in the gaps
        for buffer, life in sorted(free, key=lambda item: -item[0].size):
            # both ends count: a call must not write over what it reads, which C is told is `restrict`
            beside = sorted(
                (b.offset, b.offset + b.size)
                for b, other in placed
                if b.bits == buffer.bits and other[0] <= life[1] and life[0] <= other[1]
            )
            buffer.offset = 0
            for start, end in beside:
                if buffer.offset + buffer.size <= start:
                    break
                buffer.offset = max(buffer.offset, end)
            placed.append((buffer, life))
            name = f"memory_{buffer.bits}"
            sizes[name] = max(sizes.get(name, 0), buffer.offset + buffer.size)
        return dict(sorted(sizes.items()))


def array(name: str, kind: str, numbers: Sequence[int]) -> str:
    """A constant array in C."""
    lines, line = [], "   "
    for number in numbers:
        word = f" {number},"
        if len(line) + len(word) > 110:
            lines.append(line)
            line = "   "
        line += word
    return f"static const {kind} {name}[] = {{\n" + "\n".join([*lines, line.rstrip(",")]) + "\n};\n"
