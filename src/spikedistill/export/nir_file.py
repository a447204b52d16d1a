"""NIR files as graphs: the HDF5 file is measured before it is read, our own notes are a typed model."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import SpikedistillError
from ..reading import parse_json
from ..typed import lines

MOST_BYTES, FREE_BYTES, RATIO = 8 << 30, 1 << 30, 500
MOST_OBJECTS, DEEPEST = 100_000, 16
MOST_STEPS = 1 << 16


class _Notes(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class GridNotes(_Notes):
    """A :class:`spikedistill.neurons.dynamics.Grid`."""

    unit: Annotated[float, Field(gt=0)]
    threshold: Annotated[int, Field(ge=-(1 << 52), le=1 << 52)]
    leak: tuple[Annotated[int, Field(ge=-(1 << 31), le=1 << 31)], Annotated[int, Field(ge=0, le=31)]]
    bits: Annotated[int, Field(ge=1, le=52)] | None = None
    shift: Annotated[int, Field(ge=0, le=52)] = 0
    leak_first: bool = False
    reset_by: Annotated[int, Field(ge=1, le=1 << 52)] | None = None


class NodeNotes(_Notes):
    """What a node of the graph cannot say."""

    reset: Literal["hard", "soft"] | None = "hard"
    initial: float = 0.0
    reset_by: Annotated[float, Field(gt=0)] = 1.0
    grid: GridNotes | None = None
    step: Annotated[float, Field(gt=0)] | None = None
    max: bool = False


class CodeNotes(_Notes):
    """How a quantized network makes codes of its input."""

    kind: Literal["image", "counts", "frames", "spikes"]
    limit: Annotated[int, Field(ge=0, le=1 << 31)]
    table: list[Annotated[list[int], Field(min_length=256, max_length=256)]] | None = None


class Notes(_Notes):
    """The metadata that ``to_nir`` writes beside the graph."""

    version: Literal[1] = 1
    time_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    input: str = ""
    codes: CodeNotes | None = None
    nodes: dict[str, NodeNotes] = {}
    logits_scale: Annotated[float, Field(gt=0)] = 1.0


def read_graph(nir: Any, path: str | os.PathLike[str]) -> tuple[Any, Notes | None]:
    """(graph, notes of ours or None) of a file. Raises: SpikedistillError unless it is one NIR graph."""
    try:
        # first, since nir.read unpacks every array whole
        _measure(path)
        graph = nir.read(path)
    except SpikedistillError:
        raise
    except Exception as why:  # the package raises whatever h5py or a missing key raises
        words = " ".join(str(why).split())[:200] or type(why).__name__
        raise SpikedistillError(f"cannot read {path} as a NIR graph: {words}") from None
    if not isinstance(graph, nir.NIRGraph):
        raise SpikedistillError(f"{path} holds a single {type(graph).__name__}, not a NIR graph")
    given = (graph.metadata or {}).get("spikedistill")
    if given is None:
        return graph, None
    advice = "; metadata=False reads the graph alone"
    if not isinstance(given, str | bytes):
        raise SpikedistillError(
            f"{path}: its metadata 'spikedistill' is {type(given).__name__}, no text{advice}"
        )
    try:
        return graph, Notes.model_validate(parse_json(given, f"{path}: its metadata"))
    except ValidationError as error:
        raise SpikedistillError(f"{path}: its metadata: {lines(error)[0]}{advice}") from None


def _measure(path: str | os.PathLike[str]) -> None:
    """Refuse a file that unpacks to more than it may, or that reads other files."""
    import h5py

    total, count = 0, 0
    with h5py.File(path, "r") as file:
        waiting = [(file, 0)]
        while waiting:
            group, depth = waiting.pop()
            if depth > DEEPEST:
                raise ValueError(f"groups within each other, {DEEPEST} deep and more")
            for name in group:
                count += 1
                # asked before the item is opened, which would follow a link
                if count > MOST_OBJECTS or not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(
                        f"{name!r} is a link to elsewhere, or there are more than {MOST_OBJECTS:,} parts"
                    )
                item = group[name]
                if isinstance(item, h5py.Group):
                    waiting.append((item, depth + 1))
                elif isinstance(item, h5py.Dataset):
                    # no link, and still reads other files
                    if item.external or item.is_virtual:
                        raise ValueError(f"{name!r} lies in another file")
                    total += int(item.size or 0) * item.dtype.itemsize
    own = Path(path).stat().st_size
    if total > MOST_BYTES or total > max(FREE_BYTES, RATIO * own):
        raise ValueError(
            f"its {own:,} bytes unpack to {total:,}; at most 8 GiB, and above 1 GiB at most {RATIO} times "
            "the file"
        )


def finite(values: Any, name: str, what: str) -> Any:
    """An array of a node without NaN and infinity; raises SpikedistillError."""
    array = np.asarray(values)
    if array.dtype.kind not in "uifb" or not np.isfinite(array).all():
        raise SpikedistillError(
            f"node {name!r}: {what} holds NaN, infinity or no numbers; write the file anew"
        )
    return array
