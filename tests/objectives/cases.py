"""Every objective with options and networks that suit it: tiny, on scikit-learn's digits."""

from functools import cache

import torch
from torch import Tensor

import spikedistill as sd
from spikedistill.networks.base import Network

# type (or a name of its own) -> (options, teacher): "ann", "snn" (T = 4) or None.
CASES: dict[str, tuple[dict, str | None]] = {
    "cross_entropy": ({}, None),
    "temporal_efficient_training": ({"lamb": 0.05}, None),
    "logit_distillation": ({"over": "both"}, "ann"),
    "hard_logit_distillation": ({"type": "logit_distillation", "hard": True}, "ann"),
    "weighted_soft_labels": ({}, "ann"),
    "full_range_distillation": ({"ensemble": "correct"}, "ann"),
    "entropy_regularization": ({}, None),
    "temporal_consistency": ({}, None),
    "temporal_knowledge_sharing": ({}, None),
    "attention_transfer": ({"weight": 1000.0}, "ann"),
    "blurred_feature": ({"weight": 0.002}, "ann"),
    "blurred_feature_pooled": ({"type": "blurred_feature", "tap": "pooled", "over": "step"}, "ann"),
    "feature_distillation": ({"weight": 10.0}, "ann"),
    "feature_distillation_aligned": ({"type": "feature_distillation", "aligner": "conv3x3_bn"}, "ann"),
    "spatio_temporal_calibration": ({"weight": 10.0}, "ann"),
    "membrane_distillation": ({"pairing": "spread"}, "snn"),
    "membrane_distillation_kl": ({"type": "membrane_distillation", "metric": "kl"}, "snn"),
    "temporal_self_distillation": ({"time_steps": 4}, None),
    "spatial_self_distillation": ({}, None),
    "strong_weak_distillation": ({"form": "cascade"}, None),
    "activity_regularization": ({"per": "fan_out"}, None),
    "logits_regularization": ({}, None),
    "energy_regularization": ({}, None),
    "operations_aim": ({"operations": 1000.0}, None),
    "spike_count": ({"weight": 20.0}, None),
    "stable_spike": ({}, None),
    "activation_map_distillation": ({}, "ann"),
    "noise_smoothed_distillation": ({}, "ann"),
    "selective_alignment": ({}, "ann"),
    "cumulative_consistency": ({"weight": 0.3}, None),
    "attention_map_distillation": ({}, "ann"),
    "enhanced_self_distillation": ({}, None),
}
WITHOUT_CROSS_ENTROPY = ("cross_entropy", "temporal_efficient_training", "spike_count")


def options(case: str) -> dict:
    given, _ = CASES[case]
    return {"type": given.get("type", case), "name": case, **given}


def network(T: int | None, seed: int, head: str = "linear") -> Network:
    torch.manual_seed(seed)
    out = sd.networks.create(
        "vgg5",
        in_channels=1,
        width=0.125,
        pools=1,
        time_steps=T,
        mean=0.3,
        std=0.38,
        head=head,
        initialisation="plain",
        neuron=sd.LIF(),
    )
    for module in out.modules():
        if isinstance(module, sd.NormNeuron):
            torch.nn.init.constant_(module.bias, 0.5)  # enough spikes for the few steps that tests take
    if head == "spiking":
        torch.nn.init.normal_(out.head.linear.weight, std=1.0)
    return out


def transformer(T: int | None, seed: int) -> Network:
    torch.manual_seed(seed)
    size = {"in_channels": 1, "width": 1 / 6, "pools": 1, "depth": 2, "mean": 0.3, "std": 0.38}
    out = sd.networks.create("spikformer_2_384", time_steps=T, initialisation="plain", **size)
    for module in out.modules():
        if isinstance(module, sd.NormNeuron):
            torch.nn.init.constant_(module.bias, 0.5)
    return out


def networks(case: str) -> tuple[Network, Network | None]:
    """Student (T = 2; 8 where spikes are counted, so that there is something to count) and teacher."""
    kind = CASES[case][1]
    if case == "attention_map_distillation":
        return transformer(2, 0), transformer(None, 1)
    teacher = {"ann": lambda: network(None, 1), "snn": lambda: network(4, 1), None: lambda: None}[kind]()
    student = network(8, 0, head="spiking") if case == "spike_count" else network(2, 0)
    return student, teacher


@cache
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.images / 16).float().unsqueeze(1), torch.from_numpy(data.target).long()


def distiller(case: str) -> sd.Distiller:
    """The objective alone, on its networks."""
    student, teacher = networks(case)
    return sd.Distiller(student, teacher, [options(case)])
