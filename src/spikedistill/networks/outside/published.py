"""Published checkpoints by their authors' names: SEW-ResNet, Spikformer, Spikingformer.

SEW-ResNet      the authors' code (SeqToANNContainer around convolution and norm) and SpikingJelly's
                ``model.sew_resnet``
Spikformer      the authors' code for CIFAR-10 (linear layers on tokens) and ImageNet, and SpikingJelly's
                ``model.spikformer``
Spikingformer   the authors' code for CIFAR and ImageNet

The maps were written from these sources' names. What a network computes with them follows from how it was
created: ``downsampling="original"`` for both authors' transformers, "cml" for SpikingJelly's;
``neuron={"type": "if"}`` for SEW-ResNets.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SpikedistillError
from ..resnet import ResNet
from ..spikformer import Spikformer

_UNIT = r"tokenizer.units.\g<1>"
TRANSFORMERS = (
    (r"^patch_embed\.proj_conv(\d)\.", rf"{_UNIT}.conv."),
    (r"^patch_embed\.proj_bn(\d)\.", rf"{_UNIT}.norm."),
    # The fifth convolution before the rule for digits, which would take 4 for a unit.
    (r"^patch_embed\.(?:proj|block)4_conv\.", "tokenizer.conv."),
    (r"^patch_embed\.(?:proj|block)4_bn\.", "tokenizer.norm."),
    (r"^patch_embed\.(?:proj|block)(\d)_conv\.", rf"{_UNIT}.conv."),
    (r"^patch_embed\.(?:proj|block)(\d)_bn\.", rf"{_UNIT}.norm."),
    (r"^patch_embed\.proj_conv\.", "tokenizer.units.0.conv."),
    (r"^patch_embed\.proj_bn\.", "tokenizer.units.0.norm."),
    (r"^patch_embed\.rpe_conv\.", "tokenizer.conv."),
    (r"^patch_embed\.rpe_bn\.", "tokenizer.norm."),
    (r"^patch_embed\.stages\.(\d)\.conv_bn\.block\.0\.", rf"{_UNIT}.conv."),
    (r"^patch_embed\.stages\.(\d)\.conv_bn\.block\.1\.", rf"{_UNIT}.norm."),
    (r"^patch_embed\.positional_encoding\.conv_bn\.block\.0\.", "tokenizer.conv."),
    (r"^patch_embed\.positional_encoding\.conv_bn\.block\.1\.", "tokenizer.norm."),
    (r"^blocks?\.(\d+)\.", r"blocks.\g<1>."),
    (r"\.attn\.([qkv])_(?:conv|linear)\.", r".attn.\g<1>.conv."),
    (r"\.attn\.([qkv])_bn\.", r".attn.\g<1>.norm."),
    (r"\.attn\.qkv_conv_bn\.0\.", ".attn.qkv.conv."),
    (r"\.attn\.qkv_conv_bn\.1\.", ".attn.qkv.norm."),
    (r"\.attn\.(?:proj_conv|proj_linear|proj_conv_bn\.0)\.", ".attn.proj."),
    (r"\.attn\.(?:proj_bn|proj_conv_bn\.1)\.", ".attn_norm."),
    (r"\.mlp\.(?:fc|mlp)(\d)(?:_conv|_linear|\.0)\.", r".fc\g<1>."),
    (r"\.mlp\.(?:fc|mlp)(\d)(?:_bn|\.1)\.", r".fc\g<1>_norm."),
)
RESNETS = (
    (r"\.conv(\d)\.(?:module\.)?0\.", r".conv\g<1>."),
    (r"\.conv(\d)\.(?:module\.)?1\.", r".bn\g<1>."),
    (r"\.downsample\.0\.(?:module\.)?([01])\.", r".downsample.\g<1>."),
    (r"(^|\.)sn(\d)\.w$", r"\g<1>bn\g<2>.neuron.w"),
    (r"\.downsample(?:_sn|\.1)\.w$", ".downsample.1.neuron.w"),
)
UNUSED = re.compile(r"^block\.\d+\.norm[12]\.")  # layer norms that no forward pass of the authors' code uses


def translated(network: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under the names of ``network``; as it is if its names are not published ones."""
    if isinstance(network, Spikformer):
        if not any(k.startswith("patch_embed.") for k in given):
            return dict(given)
        _check_thresholds(network)
        return _transformer(
            network, _renamed({k: v for k, v in given.items() if not UNUSED.match(k)}, TRANSFORMERS)
        )
    return _renamed(given, RESNETS) if isinstance(network, ResNet) else dict(given)


def _renamed(given: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    out = {}
    for key, value in given.items():
        # All rules in turn: one renames the front of a key, another what follows.
        for pattern, to in rules:
            key = re.sub(pattern, to, key)
        out[key] = value
    return out


def _transformer(network: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys, values apart; linear layers as 1x1 convolutions; biases if the other side has none."""
    out: dict[str, Tensor] = {}
    for key, value in given.items():
        if ".attn.qkv." in key:
            # num_batches_tracked has no axis to divide.
            parts = value.chunk(3) if value.dim() else [value] * 3
            out |= {key.replace(".qkv.", f".{name}."): part for name, part in zip("qkv", parts, strict=True)}
        else:
            out[key] = value
    own = network.state_dict()
    for key in [k for k in out if re.search(r"\.attn\.[qkv]\.conv\.bias$", k)]:
        mean = key.replace(".conv.bias", ".norm.running_mean")  # norm(y + b) has the mean b less
        out[mean] = out[mean] - out.pop(key)
    for key, value in own.items():
        if re.search(r"\.(proj|fc1|fc2)\.bias$", key) and key not in out:
            out[key] = torch.zeros_like(value)
        elif (
            key in out
            and value.dim() == 4
            and out[key].dim() in (2, 3)
            and out[key].shape[:2] == value.shape[:2]
        ):
            out[key] = out[key].reshape(*out[key].shape, *[1] * (4 - out[key].dim()))
    return out


def _check_thresholds(network: Spikformer) -> None:
    blocks: Any = network.blocks
    found = {
        float(block.attn.neuron.threshold) for block in blocks if hasattr(block.attn.neuron, "threshold")
    }
    if found - {0.5}:
        raise SpikedistillError(
            "the attention neurons of published transformers have threshold 0.5, this network's "
            f"{min(found):g}: create it with initialisation='plain' and neuron={{'type': 'lif', 'tau': 2.0}}"
        )
