"""A network's layers for exchange formats, on floats or on codes; raises all that has no form, at once."""

from torch import Tensor

from ..errors import SpikedistillError
from ..networks.base import Network
from ..networks.graph import trace
from .coded import CodedBuilder
from .layers import Lowered, settle
from .lowering import GraphBuilder


def lower(network: Network, example: Tensor) -> Lowered:
    """The layers of one time step of ``network``; raises for what no exchange format can say, by path."""
    if not isinstance(network, Network):
        raise SpikedistillError(
            f"found a {type(network).__name__}; give a spikedistill network (sd.spiking turns others)"
        )
    if not network.spiking:
        raise SpikedistillError("this network is an ANN: there are no spikes to export; export the SNN")
    kind = GraphBuilder if network.input_codes is None else CodedBuilder
    lowered = kind(network, trace(network, example)).build()
    # what is lossy alone is for the writer of a format to judge
    fatal = [r for r in lowered.refusals if not r.lossy]
    if fatal:
        raise SpikedistillError(
            "this network cannot be expressed as convolutions, linear layers, average pools and neurons:\n  "
            + "\n  ".join(map(str, fatal))
        )
    settle(lowered)
    return lowered
