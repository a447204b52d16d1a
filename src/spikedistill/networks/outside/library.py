"""Weights from files, and networks of timm and torchvision by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SpikedistillError, nearest
from ...finite import faulty, mask_names, words
from ..balancing import RECORDED
from ..base import IMAGENET_MEAN, IMAGENET_STD, Initialisation, Network
from .adapter import Wrapped, input_channels, own_size, published, statistics

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".th", ".bin", ".tar")
# A file need not have these: a counter, and what a network knows about its images.
OPTIONAL = ("num_batches_tracked",)
OWN = ("mean", "std")
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "state_dict_ema", "model_ema")


def read_weights(file: "str | Path") -> dict[str, Tensor]:
    """Tensors by name from .safetensors, .npz or .pth; nothing in the file is run."""
    path = Path(file)
    if not path.is_file():
        raise SpikedistillError(f"weights file {path} does not exist")
    if path.suffix in (".safetensors", ".npz"):
        try:
            return _plain(path)
        except Exception as error:
            raise SpikedistillError(
                f"cannot read {path}: cut short, damaged, or of another format ({error})"
            ) from error
    if path.suffix not in SUFFIXES:
        raise SpikedistillError(
            f"{path}: weights are read from {', '.join(SUFFIXES)}; found {path.suffix or 'no suffix'}"
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SpikedistillError(
            f"{path} holds more than tensors (or is damaged) and is not loaded, because that could run code: "
            f"{error}\n"
            "Save its state dict alone: torch.save(model.state_dict(), file), or as .safetensors"
        ) from error
    # Twice: some files hold a container that holds the state dict.
    for _ in range(2):
        inner = next(
            (
                loaded[k]
                for k in CONTAINERS
                if isinstance(loaded, Mapping) and isinstance(loaded.get(k), Mapping)
            ),
            None,
        )
        loaded = loaded if inner is None else inner
    if (
        not isinstance(loaded, Mapping)
        or not loaded
        or not all(isinstance(v, Tensor) for v in loaded.values())
    ):
        raise SpikedistillError(
            f"{path} is no state dict (tensors by name); save torch.save(model.state_dict(), file)"
        )
    return dict(loaded)


def _plain(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import numpy as np

    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as z:
        return {k: torch.from_numpy(np.array(z[k])) for k in z.files}


def load_weights(network: nn.Module, file: "str | Path") -> nn.Module:
    """Load a file's weights into ``network`` by name, and return it.

    A common ``module.`` is dropped, and a wrapped model's own names fit without ``model.``.
    ``num_batches_tracked``, ``mean`` and ``std`` may be missing; a missing, unknown or differently shaped
    tensor else raises and names the nearest. Published checkpoints' names (:mod:`.published`) are known.
    """
    return load_published(network, read_weights(file), str(file))


def load_published(
    network: nn.Module, state_dict: "Mapping[str, Tensor] | str | Path", name: str = "the state dict"
) -> nn.Module:
    """Load a state dict, or a file, with its authors' names into a network of ours, and return it.

    SEW-ResNet, Spikformer and Spikingformer as their authors and SpikingJelly name them (:mod:`.published`),
    and our own names. Raises :class:`SpikedistillError` as :func:`load_weights` does; ``name`` is what errors
    call the state dict.
    """
    if isinstance(state_dict, str | Path):
        return load_weights(network, state_dict)
    from .published import translated

    file, given = name, dict(state_dict)
    # DataParallel writes this prefix.
    if all(k.startswith("module.") for k in given):
        given = {k.removeprefix("module."): v for k, v in given.items()}
    given = translated(network, given)
    own = network.state_dict()
    if isinstance(network, Wrapped) and not all(k in OWN or k.startswith("model.") for k in given):
        given = {
            # mean and std are the network's unless the model has tensors of these names.
            k if k in OWN and k not in network.model.state_dict() else f"model.{k}": v
            for k, v in given.items()
        }
    missing = [k for k in own if k not in given and k not in OWN and not k.endswith(OPTIONAL)]
    unknown = [k for k in given if k not in own and k not in OWN and not k.endswith(OPTIONAL)]
    shapes = [k for k in given if k in own and given[k].shape != own[k].shape]
    if missing:
        raise SpikedistillError(
            f"{file}: {len(missing)} tensors of the network are missing, first {missing[0]!r}; "
            f"{_in_file(missing[0], given)}"
        )
    if unknown:
        raise SpikedistillError(
            f"{file}: {len(unknown)} tensors have no place in the network, first {unknown[0]!r}; "
            f"{nearest(unknown[0], own)}"
        )
    if shapes:
        k = shapes[0]
        raise SpikedistillError(
            f"{file}: {k} has shape {tuple(given[k].shape)}, the network's is {tuple(own[k].shape)}; "
            "is it of the same width, number of classes and input channels?"
        )
    broken = faulty(given.items(), mask_names(network))
    if broken:
        raise SpikedistillError(f"{file}: {words(broken)} holds NaN or infinity; give another file")
    network.load_state_dict({**own, **{k: v for k, v in given.items() if k in own}})
    return network


def _in_file(name: str, given: Mapping[str, Tensor]) -> str:
    words = nearest(name, given)
    return (
        f"in the file: {words}"
        if words.startswith("did you mean")
        else f"the file begins with {', '.join(list(given)[:3])}"
    )


def from_name(
    name: str,
    num_classes: int | None = None,
    pretrained: bool = False,
    time_steps: int | None = None,
    input_size: int | Sequence[int] | None = None,
    interpolation: str = "bilinear",
    in_channels: int = 3,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    neuron: Any = None,
    gates: str = "refuse",
    options: Mapping[str, Any] | None = None,
    initialisation: Initialisation = "balanced",
    firing_rate: float | None = None,
) -> Network:
    """``timm:NAME`` or ``torchvision:NAME`` as a network with its own normalisation and input size.

    ``num_classes``: None keeps the model's own head. ``pretrained``: its published weights (downloaded by the
    library). ``time_steps``: None gives the ANN, T the spiking network that :func:`spiking` makes of it with
    ``neuron`` and ``gates``. ``input_size``: incoming images are resized to it (a teacher trained on 224x224
    with small images); None: as they come, or the size of a model that takes no other (transformers).
    mean, std: None takes the published ones (torchvision's are ImageNet's). ``options`` go to the library's
    own builder.

    Shape: (N, C, H, W) in [0, 1] to (N, K) or (T, N, K).
    """
    library, _, model_name = name.partition(":")
    if library == "timm":
        model = _timm(model_name, num_classes, pretrained, in_channels, options or {})
    elif library == "torchvision":
        model = _torchvision(model_name, num_classes, pretrained, options or {})
        channels = input_channels(model)
        if channels == 3:
            mean, std = (IMAGENET_MEAN if mean is None else mean), (IMAGENET_STD if std is None else std)
    else:
        raise SpikedistillError(f"network {name!r}: foreign names are 'timm:NAME' or 'torchvision:NAME'")
    if time_steps is not None:
        from .spiking import spiking

        network = spiking(
            model, time_steps, neuron, _tiny(model, input_size), mean, std, gates, "image", input_size,
            interpolation,
            initialisation, firing_rate,
        )  # fmt: skip
    else:
        channels = input_channels(model) if library == "torchvision" else in_channels
        mean, std = statistics(model, channels, mean, std)
        classes = num_classes if num_classes is not None else _classes(model)
        input_size = own_size(model) if input_size is None else input_size
        network = Wrapped(model, classes, channels, "image", None, mean, std, input_size, interpolation)
    network.config = {
        "name": name,
        "options": {
            "num_classes": num_classes, "time_steps": time_steps, "input_size": network.input_size,
            "interpolation": interpolation, "in_channels": in_channels, "mean": network.mean.tolist(),
            "std": network.std.tolist(), "gates": gates, "options": dict(options or {}),
            "neuron": network.config["spiking"]["neuron"] if time_steps is not None else None,
            "initialisation": initialisation, "firing_rate": firing_rate,
        },
        **{key: network.config[key] for key in RECORDED if key in network.config},
    }  # fmt: skip
    return network


def from_config(config: Mapping[str, Any]) -> Network:
    """The untrained network that ``config`` records; weights and what balanced them come from the record."""
    plain = {"initialisation": "plain", "firing_rate": None}
    return from_name(str(config["name"]), **{**config.get("options", {}), **plain})


def _tiny(model: nn.Module, input_size: Any) -> Tensor | None:
    # Convolutional networks take any size, and a small pass is quick; surgery refuses transformers anyway.
    if input_size is not None or published(model).get("fixed_input_size"):
        return None
    return torch.rand(2, input_channels(model), 64, 64, generator=torch.Generator().manual_seed(0))


def _classes(model: nn.Module) -> int:
    if hasattr(model, "num_classes"):
        return int(model.num_classes)  # type: ignore[arg-type]
    return next(m.out_features for m in reversed(list(model.modules())) if isinstance(m, nn.Linear))


def _timm(
    name: str, num_classes: int | None, pretrained: bool, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:  # fmt: skip
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise SpikedistillError(
            f"timm has no model {name!r}; {nearest(name.partition('.')[0], timm.list_models())}"
        )
    given = dict(options) | ({} if num_classes is None else {"num_classes": num_classes})
    return _built(
        "timm", name, pretrained, lambda: timm.create_model(name, pretrained, in_chans=in_channels, **given)
    )


def _torchvision(
    name: str, num_classes: int | None, pretrained: bool, options: Mapping[str, Any]
) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise SpikedistillError(f"torchvision has no model {name!r}; {nearest(name, known)}")
    weights = "DEFAULT" if pretrained else None
    given = dict(options)
    # Beside pretrained weights torchvision takes their own number alone: the head is exchanged later.
    if num_classes is not None and not pretrained:
        given["num_classes"] = num_classes
    # Left open, torchvision warns and draws these weights slowly; ``options`` may still ask for it.
    if name in ("googlenet", "inception_v3") and not pretrained:
        given = {"init_weights": False, "aux_logits": False} | given
    model = _built("torchvision", name, pretrained, lambda: models.get_model(name, weights=weights, **given))
    if num_classes is not None and pretrained:
        _new_head(model, num_classes)
    return model


def _built(library: str, name: str, pretrained: bool, make: Any) -> nn.Module:
    try:
        return make()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        hint = "; without a network give weights: FILE and pretrained: false" if pretrained else ""
        raise SpikedistillError(f"{library}:{name} could not be made: {error}{hint}") from error


def _new_head(model: nn.Module, num_classes: int) -> None:
    """A new last linear layer where the published one has another number of classes."""
    path, old = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    if old.out_features != num_classes:
        parent, _, key = path.rpartition(".")
        setattr(model.get_submodule(parent), key, nn.Linear(old.in_features, num_classes))
