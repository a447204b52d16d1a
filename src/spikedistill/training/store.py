"""Finished networks on disk: ``model.safetensors``, ``config.json``, a model card. The layout the Hugging Face hub expects."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import __version__, networks
from ..errors import SpikedistillError
from ..networks.balancing import restore_balance
from ..networks.base import Network
from .checkpoint import read_json, read_tensors, replace_folder

FORMAT = 1
Factories = Mapping[str, Callable[[], nn.Module]]


def save_network(
    folder: Path, network: nn.Module, about: Mapping[str, Any], card: str, best: Mapping[str, Tensor] | None = None
) -> None:
    """Write a network's folder; ``about`` joins config.json; ``best`` are the weights of the best validation epoch."""
    from safetensors.torch import save as to_bytes

    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()})
    config = {
        "format": FORMAT,
        "library": f"spikedistill {__version__}",
        "network": getattr(network, "config", {}),
        "time_steps": getattr(network, "time_steps", None),
        "sha256": hashlib.sha256(data).hexdigest(),
        **about,
    }
    contents = {"model.safetensors": data, "README.md": card.encode()}
    if best is not None:
        contents["best.safetensors"] = to_bytes({k: v.detach().cpu().contiguous() for k, v in best.items()})
        config["best_sha256"] = hashlib.sha256(contents["best.safetensors"]).hexdigest()
    contents["config.json"] = json.dumps(config, indent=1).encode()
    replace_folder(folder, contents)


def load_network(
    folder: Path, network: nn.Module | None = None, factories: Factories | None = None, best: bool = False
) -> nn.Module:
    """The network of a folder, in eval mode; one that spikedistill cannot build by itself is given as ``network``."""
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT or "network" not in config:
        raise SpikedistillError(f"{folder}: not a network folder of this version (format {config.get('format')!r})")
    file = "best.safetensors" if best else "model.safetensors"
    tensors = read_tensors(folder / file, config.get("best_sha256" if best else "sha256"))
    if network is None:
        network = rebuild(config["network"], config.get("time_steps"), str(folder), factories or {})
    else:
        if "spiking" in config["network"] and not isinstance(network, Network):
            network = turned(network, config["network"]["spiking"])
        if getattr(network, "input_codes", None) is None:  # else it was quantized by the caller
            network = formed(network, config["network"], config.get("time_steps"))
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    wrong = [*missing, *unexpected]
    if wrong:
        raise SpikedistillError(f"{folder}: the weights do not fit the network: {', '.join(wrong[:4])} ...")
    return network.eval()


def rebuild(config: Mapping[str, Any], time_steps: int | None, where: str, factories: Factories) -> nn.Module:
    """An untrained network from its recorded config."""
    config = dict(config)
    name = config.get("name")
    if name is None:
        raise SpikedistillError(f"{where}: the network is your own; pass it as sd.load(..., network=...)")
    if str(name).startswith("custom:"):
        key = str(name).removeprefix("custom:")
        if key not in factories:
            raise SpikedistillError(f"{where}: the network {key!r} is your own; pass it as sd.load(..., network=...)")
        network = factories[key]()
        if "spiking" in config:
            network = turned(network, config["spiking"])
    elif str(name).startswith(("timm:", "torchvision:")):
        from ..networks.pretrained import from_config

        network = from_config(config)
    else:
        network = networks.create(str(name), **config.get("options", {}))
    return formed(network, config, time_steps)


def turned(model: nn.Module, record: Mapping[str, Any]) -> Network:
    """Somebody's ReLU network as the spiking one that was saved; weights, and what balanced them, come from the record."""
    return networks.spiking(model, **{**record, "initialisation": "plain", "firing_rate": None})


def formed(network: nn.Module, config: Mapping[str, Any], time_steps: int | None) -> nn.Module:
    """A network as it was made, brought into the form that its config records: converted, at its T, quantized."""
    if "conversion" in config:
        from ..conversion import restore as converted

        converted(network, config)
    restore_balance(network, config)
    if time_steps is not None and getattr(network, "time_steps", None) not in (None, time_steps):
        network.time_steps = time_steps  # type: ignore[assignment]
    if "quantize" in config:
        from ..quantization.build import restore as quantized

        network = quantized(network, config["quantize"])  # type: ignore[arg-type]
    return network


def find_stage(run: Path, stage: str | None) -> Path:
    """A stage's folder: ``run`` may be a network folder itself, a run folder (its first seed), or a seed folder."""
    if (run / "config.json").exists():
        if stage is not None:
            raise SpikedistillError(f"{run} is one network's folder; it has no stage {stage!r}")
        return run
    if not (run / "stages").is_dir():
        seeds = sorted(run.glob("seed-*"))
        if not seeds:
            raise SpikedistillError(f"{run} is neither a run folder nor a network folder")
        run = seeds[0]
    stages = [p.name for p in (run / "stages").iterdir()]
    order = read_json(run / "order.json")["stages"] if (run / "order.json").exists() else sorted(stages)
    found = {name: run / "stages" / name for name in order if (run / "stages" / name / "config.json").exists()}
    if not found:
        raise SpikedistillError(f"{run} holds no finished stage yet; continue it with `spikedistill resume {run}`")
    if stage is None:
        return [*found.values()][-1]
    if stage not in found:
        raise SpikedistillError(f"{run} has no finished stage {stage!r}; it has {', '.join(found)}")
    return found[stage]


def load(folder: "str | Path", stage: str | None = None, network: nn.Module | None = None) -> nn.Module:
    """A trained network from a run folder (its last stage, or ``stage``), a seed folder or a network folder, in eval mode.

    ``network``: an instance of your own class to load the weights into, where the run used one.
    """
    return load_network(find_stage(Path(folder), stage), network)
