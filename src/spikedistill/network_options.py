"""What a recipe may say about a stage's network: ours, of a library, of a folder, or somebody's own."""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, ValidationInfo, model_validator
from torch import nn

from . import networks, own_code
from .errors import SpikedistillError, nearest
from .networks.base import Initialisation
from .networks.outside.library import from_name
from .networks.own import FILLED, parameters
from .neurons import build as build_neuron
from .typed import Choice, complaint, model_of


class NetworkOptions(Choice):
    """A stage's ``network``: its name, the keys below, and the options of that network."""

    name: str
    ann: bool = False
    spiking: bool = False
    weights: Any = None
    pretrained: Any = None
    input_size: Any = None
    neuron: Any = None

    @classmethod
    def chosen(cls, given: Mapping[str, Any], info: ValidationInfo) -> "type[NetworkOptions]":
        name, custom = given.get("name"), (info.context or {}).get("custom", ())
        if not isinstance(name, str):
            found = f"found {name!r}; give one of `spikedistill.networks.names()`, timm:NAME, ..."
            raise complaint(found, "name")
        if name.startswith(("timm:", "torchvision:")):
            return model_of(from_name, ("name", "time_steps", "neuron"), cls)
        if name in custom:
            # Names alone say nothing of parameters: any option is let by.
            return model_of_own(custom[name]) if isinstance(custom, Mapping) else UnseenNetwork
        # Before addresses: where own code is shut out a record must still be read, whatever it names.
        if "/" in name or Path(name).is_dir() or (own_code.is_shut() and name not in networks.names()):
            return UnseenNetwork
        if own_code.is_address(name):
            return model_of_own(own_code.find(name, "network"))
        if name not in networks.names():
            known = nearest(name, [*networks.names(), *custom])
            others = "timm:NAME, torchvision:NAME, module:Name, a folder"
            raise complaint(f"unknown network {name!r}; {known} (or {others})", "name")
        return model_of(networks.BUILDERS[name], ("time_steps", "neuron"), NamedNetwork, f"network_{name}")

    @classmethod
    def examples(cls) -> "list[type[NetworkOptions]]":
        return [
            model_of(builder, ("time_steps", "neuron"), NamedNetwork, f"network_{name}", name=Literal[name])
            for name, builder in networks.BUILDERS.items()
        ] + [UnseenNetwork]

    @classmethod
    def unknown_key(cls, key: str, values: Mapping[str, Any]) -> ValidationError:
        name = values["name"]
        return complaint(f"network {name!r} has no option {key!r}; {nearest(key, cls.keys_known())}")


class UnseenNetwork(NetworkOptions, extra="allow"):
    """A network of a folder, or of code that is not imported: what it takes is not known here."""


ALWAYS = ("name", "ann", "spiking", "weights")  # what every network of one's own takes
SURGERY = ("neuron", "gates", "initialisation", "firing_rate")  # and where its ReLUs become neurons


class OwnNetwork(NetworkOptions):
    """A network of somebody's own; ``gates``, ``initialisation``, ``firing_rate`` need ``spiking: true``."""

    gates: Literal["refuse", "keep"] = "refuse"
    initialisation: Initialisation = "balanced"
    firing_rate: float | None = None

    @classmethod
    def unknown_key(cls, key: str, values: Mapping[str, Any]) -> ValidationError:
        if key == "time_steps":
            return complaint("time steps belong to the stage (or the recipe), not to its network", key)
        return super().unknown_key(key, values)

    @classmethod
    def taken(cls) -> "set[str]":
        """Parameters of what will be called."""
        return set()

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> Self:
        surgery = SURGERY if self.spiking else ()
        for key in self:
            if key in OwnNetwork.model_fields and key not in (*ALWAYS, *surgery, *self.taken()):
                with_spiking = " without `spiking: true`" if key in SURGERY else ""
                known = nearest(key, [*self.taken(), *ALWAYS])
                raise complaint(f"network {self.name!r} has no option {key!r}{with_spiking}; {known}", key)
        return self


@cache
def _called(target: Any) -> "type[OwnNetwork]":
    """The model of a class or function (None: of a module); what data and stage fill in may be left out."""
    taken = {} if target is None else parameters(target)
    # A partial gives them a default: required by the constructor, they are not required in the recipe.
    filled = {key: None for key in FILLED if key in taken and taken[key].default is taken[key].empty}
    called = partial(target, **filled) if taken else _nothing

    class Own(OwnNetwork):
        @classmethod
        def taken(cls) -> "set[str]":
            return set(taken)

    left_out = (*ALWAYS, "time_steps", "neuron")
    return model_of(called, left_out, Own, f"network_{getattr(target, '__name__', 'own')}")


def model_of_own(target: Any) -> "type[OwnNetwork]":
    """The model of a class, function or module of somebody's own."""
    return _called(target if callable(target) and not isinstance(target, nn.Module) else None)


def _nothing() -> None:
    """For a module, which takes no options."""


class NamedNetwork(NetworkOptions):
    """A network of :func:`spikedistill.networks.names`."""

    @classmethod
    def unknown_key(cls, key: str, values: Mapping[str, Any]) -> ValidationError:
        if key == "time_steps":
            return complaint("time steps belong to the stage (or the recipe), not to its network", key)
        return super().unknown_key(key, values)

    @model_validator(mode="wrap")
    @classmethod
    def _no_quotes(cls, given: Any, handler: Any) -> Any:
        # pydantic reads "4" as 4; the record would then hold another value than the recipe.
        found = handler(given)
        for key, value in found.items():
            if isinstance(given[key], str) and not isinstance(value, str):
                raise complaint(f"found the text {given[key]!r}; write it without quotes", key)
        return found

    @model_validator(mode="after")
    def _neuron_is_known(self) -> Self:
        # Built to be checked; a neuron may be own code, which reading a run must not import.
        if isinstance(self.neuron, Mapping) and not own_code.is_shut():
            try:
                build_neuron(self.neuron)
            except SpikedistillError as error:
                raise complaint(str(error), "neuron") from None
        return self


# Keys of a stage's `network` that are not options of its builder.
NETWORK_KEYS = tuple(NetworkOptions.model_fields)
