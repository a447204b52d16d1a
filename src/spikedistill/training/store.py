"""Finished networks on disk: ``model.safetensors``, ``config.json``, a model card. The layout the Hugging Face hub expects."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import __version__, finite, networks
from ..errors import SpikedistillError
from ..files import replace_folder
from ..networks.balancing import restore_balance
from ..networks.base import Network
from . import records
from .checkpoint import read_json, read_tensors, sealed

FORMAT = 1
Factories = Mapping[str, Callable[[], nn.Module]]


def save_network(
    folder: Path,
    network: nn.Module,
    about: Mapping[str, Any],
    card: str,
    best: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a network's folder in one exchange; ``about`` joins config.json; ``extra``: further files.

    ``best``: the weights and statistics of the best validation epoch, as they were measured. Raises for a network that
    holds NaN: a finished folder is never written of one.
    """
    from safetensors.torch import save as to_bytes

    finite.check(network, f"{folder}: the trained network", "nothing was written; the last checkpoint is kept")
    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()})
    config = {
        "format": FORMAT,
        "record": records.RECORD,
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
    contents |= {name: text.encode() for name, text in (extra or {}).items()}
    contents["config.json"] = sealed(config)
    replace_folder(folder, contents)


def load_network(
    folder: Path, network: nn.Module | None = None, factories: Factories | None = None, best: bool = False
) -> nn.Module:
    """The network of a folder, in eval mode; one that spikedistill cannot build by itself is given as ``network``.

    ``best``: with the weights of the best validation epoch in place of the last ones.
    """
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT or "network" not in config:
        raise SpikedistillError(f"{folder}: not a network folder of this version (format {config.get('format')!r})")
    if best and "best_sha256" not in config:
        raise SpikedistillError(f"{folder} keeps no best epoch: its stage had no validation; load it without best")
    file = "best.safetensors" if best else "model.safetensors"
    tensors = read_tensors(folder / file, config.get("best_sha256" if best else "sha256"))
    described = records.upgraded_config(config["network"], int(config.get("record", 1)))
    if network is None:
        network = rebuild(described, config.get("time_steps"), str(folder), factories or {})
    else:
        if "spiking" in described and not isinstance(network, Network):
            network = turned(network, described["spiking"])
        if getattr(network, "input_codes", None) is None:  # else it was quantized by the caller
            network = formed(network, described, config.get("time_steps"))
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    wrong = [*missing, *unexpected]
    if wrong:
        raise SpikedistillError(f"{folder}: the weights do not fit the network: {', '.join(wrong[:4])} ...")
    finite.check(network, f"{folder / file}", "repeat the stage, or use another file")
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
        from ..quantization.preparation import restore as quantized

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


def load(
    folder: "str | Path", stage: str | None = None, network: nn.Module | None = None, best: bool = False
) -> nn.Module:
    """A trained network from a run folder (its last stage, or ``stage``), a seed folder or a network folder, in eval mode.

    ``network``: an instance of your own class to load the weights into, where the run used one. ``best``: the network of
    the best validation epoch, exactly as it was measured, in place of the last (also ``stage="STAGE@best"``).
    """
    stage, at_best = split_best(stage)
    return load_network(find_stage(Path(folder), stage), network, best=best or at_best)


def split_best(stage: str | None) -> tuple[str | None, bool]:
    """``STAGE@best`` into the stage and whether its best epoch is meant; ``@best`` alone: of the last stage."""
    if stage is None or not stage.endswith("@best"):
        return stage, False
    return stage.removesuffix("@best") or None, True
