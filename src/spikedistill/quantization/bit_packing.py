"""Signed integer codes packed at their own width, 2 to 8 bits, into bytes."""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes in ``[-2^(bits-1), 2^(bits-1) - 1]`` as uint8 bytes, lowest bit first.

    ``ceil(numel * bits / 8)`` bytes.
    """
    # int16 between: at 8 bits the shifted codes reach 255, which int8 does not hold.
    unsigned = (codes.flatten().to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    planes = torch.stack([(unsigned >> i) & 1 for i in range(bits)], 1).flatten()
    planes = torch.nn.functional.pad(planes, (0, -planes.numel() % 8)).view(-1, 8)
    out = torch.zeros(planes.shape[0], dtype=torch.uint8)
    for i in range(8):
        out |= planes[:, i] << i
    return out


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes again, int8 of ``shape``."""
    count = 1
    for n in shape:
        count *= n
    planes = torch.stack([(packed >> i) & 1 for i in range(8)], 1).flatten()[: count * bits].view(count, bits)
    out = torch.zeros(count, dtype=torch.int16)
    for i in range(bits):
        out |= planes[:, i].to(torch.int16) << i
    return (out - (1 << (bits - 1))).to(torch.int8).view(shape)
