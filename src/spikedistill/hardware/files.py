"""Layer files: a network's layers, and optionally the chip, as YAML.

.. code-block:: yaml

    layers:
      - {name: conv1, kind: conv, in_channels: 3, out_channels: 64, kernel_size: 3, in_size: 32, out_size: 32}
    time_steps: 5
    spikesim: {mode: released, crossbar_size: 64, pe_per_tile: 8, clock_mhz: 250, device: rram}

Optional keys of a layer are the fields of `Layer`; besides, ``bits`` is one number for weights or a mapping
``{weight, membrane, norm}``, and ``input`` is ``spikes``, ``integers`` or ``real``, or a mapping ``{kind,
bits, max}``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from math import prod
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from ..errors import SpikedistillError
from ..files import destination, exported
from ..typed import Strict, lines, parse
from .config import Config, read_yaml
from .layer import InputKind, Layer

_LAYER = TypeAdapter(Layer)
_SHORT = ("bits", "input")
MOST_BLOCKS = 1 << 16


class _Bits(Strict):
    weight: int = 32
    membrane: int = 32
    norm: int = 32


class _Input(Strict):
    kind: InputKind
    bits: int = 32
    max: int = 1


class _File(Strict):
    layers: list[dict[str, Any]] = Field(min_length=1)
    time_steps: int = Field(1, ge=1)
    spikesim: dict[str, Any] = {}


def _check_neuron(name: Any, where: str) -> None:
    """Refuse what is meant for a known neuron and would be priced as another; names of own classes stay."""
    known = ("if", "lif", "plif", "relu")
    if name is None or name in known or not isinstance(name, str):
        return
    if name.lower() in ("none", "null", *known):
        raise SpikedistillError(
            f"{where}: neuron {name!r}; write if, lif, plif or relu, and null where no neuron reads the layer"
        )


def _expand(entry: Mapping[str, Any], time_steps: int, where: str) -> dict[str, Any]:
    """Write the short keys out; a conv or linear layer feeds a neuron unless it says ``neuron: null``."""
    layer = {"time_steps": time_steps, **entry}
    if layer.get("kind", "conv") in ("conv", "linear"):
        layer.setdefault("neuron", "lif")
        _check_neuron(layer["neuron"], where)
        # after the default of `neuron`, which decides
        layer.setdefault("leaky", layer["neuron"] in ("lif", "plif"))
    if "bits" in layer:
        bits = layer.pop("bits")
        read = parse(_Bits, bits if isinstance(bits, Mapping) else {"weight": bits}, f"{where}: bits")
        # only what was said, so that the defaults of `Layer` hold for the rest
        layer.update({f"{key}_bits": value for key, value in read.model_dump(exclude_unset=True).items()})
    if "input" in layer:
        given = layer.pop("input")
        read_input = parse(
            _Input, given if isinstance(given, Mapping) else {"kind": given}, f"{where}: input"
        )
        layer.update(
            {f"input_{key}": value for key, value in read_input.model_dump(exclude_unset=True).items()}
        )
    return layer


def _layer(entry: Mapping[str, Any], index: int, time_steps: int, path: str) -> Layer:
    where = f"{path}: layers.{index} ({entry.get('name', 'no name')})"
    try:
        return _LAYER.validate_python(_expand(entry, time_steps, where))
    except ValidationError as error:
        known = [field.name for field in fields(Layer)] + list(_SHORT)
        raise SpikedistillError("\n".join(f"{where}: {line}" for line in lines(error, known))) from None


def check_geometry(layers: Sequence[Layer], where: str) -> None:
    """Refuse an ``out_size`` that neither convolution nor pooling gives (not asked in released mode).

    Raises: SpikedistillError.
    """
    for layer in layers:
        if layer.kind == "conv" and any(
            typed > made for typed, made in zip(layer.typed_size, layer.positions)
        ):
            raise SpikedistillError(
                f"{where}: {layer.name}: out_size {layer.typed_size} is larger than the {layer.positions} "
                f"positions that kernel {layer.kernel_size}, stride {layer.stride}, padding {layer.pads} "
                f"make of in_size {layer.in_size}; correct one of them"
            )
        if layer.kind == "conv" and prod(layer.positions) < 1:
            raise SpikedistillError(
                f"{where}: {layer.name}: kernel {layer.kernel_size} is larger than its padded input"
            )


def read_layers(path: str | Path) -> tuple[list[Layer], dict[str, Any]]:
    """Layers of a file and its raw ``spikesim`` settings, for `resolve`.

    Raises: SpikedistillError that names file, layer, key and the nearest known key.
    """
    data = parse(_File, read_yaml(path), str(path))
    layers = [_layer(entry, index, data.time_steps, str(path)) for index, entry in enumerate(data.layers)]
    names = [layer.name for layer in layers]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise SpikedistillError(f"{path}: layer names must differ; found twice: {', '.join(double)}")
    # what pricing walks over one by one: blocks of input channels
    blocks = sum(layer.groups if layer.groups > 1 else -(-layer.in_channels // 8) for layer in layers)
    if blocks > MOST_BLOCKS:
        raise SpikedistillError(
            f"{path}: {blocks:,} groups, or blocks of 8 input channels, in all layers; "
            f"at most {MOST_BLOCKS:,} are priced"
        )
    # parsed for the file's name in the error, returned raw: `resolve` goes key by key
    parse(Config, data.spikesim, f"{path}: spikesim")
    return layers, data.spikesim


def write_layers(layers: Sequence[Layer], path: str | Path, config: Config | None = None) -> None:
    """Write layers, with everything measured, as a file that `read_layers` reads back to equal layers."""
    entries = []
    for layer in layers:
        plain = asdict(layer)
        defaults = {field.name: field.default for field in fields(Layer)}
        # `neuron` is always said: in a file its absence means a neuron.
        entries.append(
            {k: v for k, v in plain.items() if k in ("kind", "neuron", "time_steps") or v != defaults[k]}
        )
    data: dict[str, Any] = {"layers": [_plain(entry) for entry in entries]}
    if config is not None:
        # only what was set: a default written out would go over a recipe's key
        data["spikesim"] = config.model_dump(exclude_unset=True)
    with exported(destination(path)) as temporary:
        temporary.write_text(
            yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120), encoding="utf-8"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def resolve(*sources: tuple[str, Mapping[str, Any]]) -> Config:
    """One `Config` from raw settings, later over earlier, key by key: recipe, layer file, ``--config``.

    Each source is (its name for errors, its settings). Raises: SpikedistillError.
    """
    merged: dict[str, Any] = {}
    for name, source in sources:
        # each alone first, so that an error names the source that holds the key
        parse(Config, dict(source), name)
        for key, value in source.items():
            # `switches` and `technology` are merged key by key as well
            nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = {**merged[key], **value} if nested else value
    return parse(Config, merged, " and ".join(name for name, _ in sources) or "defaults")
