"""A small network, and images for it."""

import torch

import spikedistill as sd

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6)


def network(T=2, seed=0, **given):
    torch.manual_seed(seed)
    return sd.networks.create(
        "vgg5", **({"in_channels": 1, "width": 0.125, "pools": 1, "time_steps": T} | given)
    )
