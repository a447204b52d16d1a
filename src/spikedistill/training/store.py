"""Finished networks on disk: ``model.safetensors``, ``config.json``, a model card: the hub's layout."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__, finite, hub, networks, own_code
from ..errors import SpikedistillError
from ..files import replace_folder
from ..networks.balancing import restore_balance
from ..networks.base import Network
from ..networks.interpreter import network_of
from ..networks.own import Own, make, mark, own_of
from ..quantization import IntegerNetwork
from ..reading import read_json as read_plain
from . import records, standalone
from .checkpoint import fill, read_json, read_tensors, sealed
from .run_folder import seed_folders

FORMAT = 1
GRAPH = "graph.json"
Factories = Mapping[str, Any]


def save_network(
    folder: Path,
    network: nn.Module,
    about: Mapping[str, Any],
    card: str,
    best: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a network's folder in one exchange; ``about`` joins config.json; ``extra``: further files.

    ``best``: the weights and statistics of the best validation epoch, as they were measured. Raises for a
    network that holds NaN: a finished folder is never written of one.
    """
    from safetensors.torch import save as to_bytes

    finite.check(
        network, f"{folder}: the trained network", "nothing was written; the last checkpoint is kept"
    )
    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()})
    described, time_steps = description(network), getattr(network, "time_steps", None)
    contents = {"model.safetensors": data, "README.md": card.encode()}
    code: dict[str, Any] = {}
    if (own := own_of(network)) is not None:
        own = _alone(network, own, described, time_steps)
        code = {"code": {"name": own.name, **own_code.recorded(own.name), "needed": own.why or None}}
        if own.graph is None:
            instead = "sd.load('this folder', network=your_module)"
            needs = f"The network is code of your own, `{own.name}`, and needs it: `{instead}`. {own.why}"
            contents["README.md"] = f"{card}\n{needs}\n".encode()
        if own.graph is not None:
            contents[GRAPH] = json.dumps(own.graph, indent=1).encode()
            code["graph_sha256"] = hashlib.sha256(contents[GRAPH]).hexdigest()
    config = {
        "format": FORMAT,
        "record": records.RECORD,
        "library": f"spikedistill {__version__}",
        "network": described,
        "time_steps": time_steps,
        "sha256": hashlib.sha256(data).hexdigest(),
        **code,
        **about,
    }
    if best is not None:
        contents["best.safetensors"] = to_bytes({k: v.detach().cpu().contiguous() for k, v in best.items()})
        config["best_sha256"] = hashlib.sha256(contents["best.safetensors"]).hexdigest()
    contents |= {name: text.encode() for name, text in (extra or {}).items()}
    # Sealed with the checksums of weights and graph inside: one file vouches for the whole network.
    contents["config.json"] = sealed(config)
    replace_folder(folder, contents)


def save(network: nn.Module, folder: "str | Path") -> None:
    """Write a network of a loop of your own into a folder, from which :func:`load` makes it again.

    Weights, statistics, and what no ``state_dict`` holds: the options it was created with, the thresholds,
    widths and input factors of its balance, its time steps, bits of a quantized network. A folder that holds
    a network is replaced, in one exchange. A module that the library has not made is loaded into an instance
    of its class: ``sd.load(folder, network=...)``.

    Raises :class:`SpikedistillError` for a folder that holds something else, an integer network (save the
    quantized one that it is made of), and NaN.
    """
    folder = Path(folder)
    if isinstance(network, IntegerNetwork):
        raise SpikedistillError(
            "an integer network is not saved: save the quantized one, of which sd.to_integer makes it"
        )
    if folder.exists() and not _replaceable(folder):
        raise SpikedistillError(f"{folder} holds something else than a network; name another folder")
    name = getattr(network, "config", {}).get("name") or type(network).__name__
    save_network(
        folder, network, {}, f"# {name}\n\n`spikedistill.load(FOLDER)` makes the network of this folder.\n"
    )


def _replaceable(folder: Path) -> bool:
    """Whether nothing but a network's folder, or an empty one, would be lost."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder.is_dir()
    try:
        return "spikedistill" in str(read_json(folder / "config.json").get("library"))
    except SpikedistillError:
        return False


def description(network: nn.Module) -> dict[str, Any]:
    """What ``config.json`` says of a network: whatever makes its like."""
    config = network.config if isinstance(network, Network) else {}
    own = own_of(network)
    return dict(config) if own is None else {**config, "name": own.name, "options": own.options}


def _alone(network: nn.Module, own: Own, described: Mapping[str, Any], time_steps: int | None) -> Own:
    """With the graph where a network made of it behaves as this one does, else with the reason."""
    if own.graph is None:
        return own

    def formed_of(made: nn.Module) -> nn.Module:
        return formed(made, json.loads(json.dumps(described)), time_steps)

    why = standalone.difference(network, own.graph, formed_of)
    return own if why is None else replace(own, graph=None, why=why)


def load_network(
    folder: Path, network: nn.Module | None = None, factories: Factories | None = None, best: bool = False
) -> nn.Module:
    """The network of a folder, in eval mode; one that spikedistill cannot build is given as ``network``.

    ``best``: with the weights of the best validation epoch in place of the last ones.
    """
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT or "network" not in config:
        raise SpikedistillError(
            f"{folder}: not a network folder of this version (format {config.get('format')!r})"
        )
    if best and "best_sha256" not in config:
        raise SpikedistillError(
            f"{folder} keeps no best epoch: its stage had no validation; load it without best"
        )
    file = "best.safetensors" if best else "model.safetensors"
    tensors = read_tensors(folder / file, config.get("best_sha256" if best else "sha256"))
    described = records.upgraded_config(config["network"], int(config.get("record", 1)))
    if network is None:
        network = rebuild(
            described, config.get("time_steps"), str(folder), factories or {}, _graph(folder, config), tensors
        )
    else:
        if "spiking" in described and not isinstance(network, Network):
            network = turned(network, described["spiking"])
        if getattr(network, "input_codes", None) is None:  # else it was quantized by the caller
            network = formed(network, described, config.get("time_steps"))
    # Of a run in float64: rounded, a continued run would not be the same.
    if any(value.dtype == torch.float64 for value in tensors.values()):
        network.double()
    fill(network, tensors, str(folder), "give a network of the same width, classes and input channels")
    # The logits would not tell: a spike is `membrane >= threshold`, which is false for NaN.
    finite.check(network, f"{folder / file}", "repeat the stage, or use another file")
    return network.eval()


def _graph(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The graph of a folder; None where it has none. Raises for one that is not as it was written."""
    if "graph_sha256" not in config:
        return None
    path = folder / GRAPH
    found = read_plain(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != config["graph_sha256"] or not isinstance(found, dict):
        raise SpikedistillError(
            f"{path} is damaged: its checksum differs; take it from a copy, or repeat the stage"
        )
    return found


def own_target(name: str, factories: Factories) -> Any:
    """The class, function or module that a network's name means; None for a name that is no own code's."""
    if name in factories:
        return factories[name]
    return own_code.find(name, "network") if own_code.is_address(name) else None


def rebuild(
    config: Mapping[str, Any],
    time_steps: int | None,
    where: str,
    factories: Factories,
    graph: dict[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """An untrained network from its recorded config; of own code: by that code if in use, else its graph."""
    config = dict(config)
    name = config.get("name")
    own = name is None or str(name).startswith("custom:") or own_code.is_address(name)
    if own:
        known = str(name).removeprefix("custom:")
        # To be trained further, a network needs its code: what is done in training only is not in its graph.
        by_code = own_code.is_training() or (graph is None and own_code.is_open())
        target = own_target(known, factories) if known in factories or by_code else None
        options = dict(config.get("options") or {})
        if target is not None:
            network = make(
                known, target, options if own_code.is_address(known) or "options" in config else {}, {}
            )
            if "spiking" in config:
                network = turned(network, config["spiking"])
        elif graph is not None:
            # No more numbers than the weights hold: a forged graph could ask for any amount of memory.
            network = network_of(graph, f"{where}/{GRAPH}", sum(t.numel() for t in (tensors or {}).values()))
            if isinstance(network, Network):
                network.config = {k: v for k, v in config.items() if k != "quantize"}
        else:
            named = "" if name is None else f" {known!r}"
            raise SpikedistillError(
                f"{where}: the network{named} is your own; pass it as sd.load(..., network=...)"
            )
        mark(network, Own(str(name), options, graph))
    elif str(name).startswith(("timm:", "torchvision:")):
        from ..networks.outside.library import from_config

        network = from_config(config)
    else:
        try:
            network = networks.create(str(name), **config.get("options", {}))
        except own_code.NotImportedError as error:
            raise SpikedistillError(
                f"{where}: {error}; pass the network as sd.load(..., network=...)"
            ) from None
    return formed(network, config, time_steps)


def turned(model: nn.Module, record: Mapping[str, Any]) -> Network:
    """Somebody's ReLU network as the spiking one that was saved.

    Weights, and what balanced them, come from the record.
    """
    return networks.spiking(model, **{**record, "initialisation": "plain", "firing_rate": None})


def formed(network: nn.Module, config: Mapping[str, Any], time_steps: int | None) -> nn.Module:
    """A network as it was made, in the form that its config records: converted, at its T, quantized."""
    if "conversion" in config:
        from ..conversion import restore as converted

        converted(network, config)
    restore_balance(network, config)
    if time_steps is not None and getattr(network, "time_steps", None) not in (None, time_steps):
        network.time_steps = time_steps  # type: ignore[assignment]
    if "quantize" in config:
        from ..quantization.preparation import restore as quantized

        network = quantized(network, config["quantize"])  # type: ignore[arg-type]
    return network


def find_stage(run: Path, stage: str | None) -> Path:
    """A stage's folder; ``run``: a network folder itself, a run folder (its first seed), or a seed folder."""
    if (run / "config.json").exists():
        if stage is not None:
            raise SpikedistillError(f"{run} is one network's folder; it has no stage {stage!r}")
        return run
    if not (run / "stages").is_dir():
        seeds = seed_folders(run)
        if not seeds:
            raise SpikedistillError(f"{run} is neither a run folder nor a network folder")
        run = seeds[0]
    stages = [p.name for p in (run / "stages").iterdir()]
    order = read_json(run / "order.json")["stages"] if (run / "order.json").exists() else sorted(stages)
    found = {
        name: run / "stages" / name for name in order if (run / "stages" / name / "config.json").exists()
    }
    if not found:
        raise SpikedistillError(
            f"{run} holds no finished stage yet; continue it with `spikedistill resume {run}`"
        )
    if stage is None:
        return [*found.values()][-1]
    if stage not in found:
        raise SpikedistillError(f"{run} has no finished stage {stage!r}; it has {', '.join(found)}")
    return found[stage]


def load(
    folder: "str | Path", stage: str | None = None, network: nn.Module | None = None, best: bool = False
) -> nn.Module:
    """A trained network from a run folder (last stage, or ``stage``), seed or network folder, in eval mode.

    Where the run used a network of your own, it is made of the graph that lies beside the weights; no code is
    imported. ``network``: an instance of your own class to load the weights into instead. ``best``: the
    network of the best validation epoch, exactly as it was measured, in place of the last (also
    ``stage="STAGE@best"``). ``hf://owner/name[@revision]``: a network of the Hugging Face hub, of which only
    weights and JSON are fetched (:mod:`spikedistill.hub`).
    """
    stage, at_best = split_best(stage)
    folder = hub.fetch(str(folder)) if hub.is_remote(folder) else folder
    # A run's folder may come from anybody: to load it must run nothing of theirs.
    with own_code.closed():
        return load_network(find_stage(Path(folder), stage), network, best=best or at_best)


def split_best(stage: str | None) -> tuple[str | None, bool]:
    """``STAGE@best`` into the stage and if its best epoch is meant; ``@best`` alone: of the last stage."""
    if stage is None or not stage.endswith("@best"):
        return stage, False
    return stage.removesuffix("@best") or None, True
