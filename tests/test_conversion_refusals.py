"""What conversion and surgery refuse, by path and with the nearest thing that is supported."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill.conversion import balance_thresholds

BATCH_NORM, RELU, SPIKING = (
    "use nn.BatchNorm1d or nn.BatchNorm2d",
    "use nn.ReLU in its place",
    "spike_driven_2_512",
)


class Tokens(nn.Module):
    """A ReLU network with one operation on its tokens (N, L, C), by a module or a function."""

    def __init__(self, what: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.norm, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.block = what if isinstance(what, nn.Module) else nn.Identity()
        self.function = None if isinstance(what, nn.Module) else what

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x))).flatten(2).transpose(1, 2)
        if self.function is not None:
            x = self.function(x)
        x = self.block(x, x, x)[0] if isinstance(self.block, nn.MultiheadAttention) else self.block(x)
        return self.fc(x.mean(1))


def channels_first(norm: nn.Module) -> nn.Module:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.transpose(1, 2)).transpose(1, 2)

    return Turned()


NORMS = {
    "block: LayerNorm": nn.LayerNorm(8),
    "block: RMSNorm": nn.RMSNorm(8),
    "block.norm: GroupNorm": channels_first(nn.GroupNorm(2, 8)),
    "block.norm: InstanceNorm1d": channels_first(nn.InstanceNorm1d(8)),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "rms_norm": lambda x: F.rms_norm(x, (8,)),
    "group_norm": lambda x: F.group_norm(x.transpose(1, 2), 2).transpose(1, 2),
}
OTHERS = {
    "block: GELU": (nn.GELU(), RELU),
    "block: SiLU": (nn.SiLU(), RELU),
    "gelu": (F.gelu, RELU),
    "silu": (F.silu, RELU),
    "block: Softmax": (nn.Softmax(-1), SPIKING),
    "softmax": (lambda x: (x @ x.transpose(1, 2)).softmax(-1) @ x, SPIKING),
    "block: multi_head_attention_forward": (nn.MultiheadAttention(8, 2, batch_first=True), SPIKING),
    "scaled_dot_product_attention": (lambda x: F.scaled_dot_product_attention(x, x, x), SPIKING),
}


@pytest.mark.parametrize("place", NORMS)
def test_norms_of_the_inputs_own_statistics_are_refused(place: str) -> None:
    with pytest.raises(sd.SpikedistillError, match=f"{place} at .*(?s:.*){BATCH_NORM}"):
        sd.convert(Tokens(NORMS[place]), torch.rand(4, 3, 6, 6))


@pytest.mark.parametrize("place", OTHERS)
@pytest.mark.parametrize("how", ["convert", "spiking"])
def test_activations_and_attention_are_refused(how: str, place: str) -> None:
    what, instead = OTHERS[place]
    x = torch.rand(4, 3, 6, 6)
    with pytest.raises(sd.SpikedistillError, match=f"{place} at .*(?s:.*){instead}"):
        sd.convert(Tokens(what), x) if how == "convert" else sd.spiking(Tokens(what), 4, example=x)


def test_all_of_a_transformer_is_named_at_once() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    with pytest.raises(sd.SpikedistillError) as error:
        sd.convert(Tokens(block), torch.rand(4, 3, 6, 6))
    for part in (
        "block.norm1: LayerNorm",
        "block.norm2: LayerNorm",
        "block: gelu",
        "block.self_attn: multi_head",
    ):
        assert part in str(error.value)
    for part in (BATCH_NORM, RELU, SPIKING):
        assert part in str(error.value)


class Normed(sd.networks.Network):
    """A norm that reads spikes."""

    def __init__(self, norm: nn.Module, time_steps: int | None) -> None:
        super().__init__(5, 3, time_steps=time_steps)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), norm, nn.Linear(4, 5)
        self.activation = nn.ReLU() if time_steps is None else sd.neurons.IF(encode=True)

    def body(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.activation(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize("affine", [True, False])
def test_norms_without_running_statistics_are_refused_on_spikes(affine: bool) -> None:
    ann, student = (Normed(nn.BatchNorm2d(4, affine=affine, track_running_stats=False), T) for T in (None, 4))
    with pytest.raises(sd.SpikedistillError, match=r"the norm at norm reads spikes and .* set track_running"):
        balance_thresholds(student, ann, torch.rand(4, 3, 6, 6))


def test_a_norm_whose_variance_cannot_carry_a_worth_is_refused() -> None:
    norm = nn.BatchNorm2d(4, affine=False)
    norm.running_var.zero_()
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), norm, nn.Flatten(), nn.Linear(64, 3)).eval()
    ann[0].weight.data.mul_(1e5)
    with pytest.raises(sd.SpikedistillError, match=r"the norm at model\.2 has no weight .* affine=True"):
        sd.convert(ann, torch.rand(4, 3, 6, 6))
