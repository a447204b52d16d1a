"""From another library's network to recipes and integers; the page about it is true."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill import neurons, taps

PAGE = Path(__file__).parents[2] / "docs" / "other_libraries.md"


def test_every_block_of_the_page_runs() -> None:
    pytest.importorskip("spikingjelly")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert names["network"].num_classes == 10  # type: ignore[attr-defined]


def test_a_spikingjelly_checkpoint_is_distilled_by_a_recipe_to_four_bits_and_integers(tmp_path: Path) -> None:
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    from spikingjelly.activation_based import functional, neuron

    def model() -> nn.Module:
        torch.manual_seed(0)
        parts = [
            layer.Conv2d(1, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), neuron.LIFNode(v_reset=None),
            layer.AvgPool2d(2), layer.Flatten(), layer.Linear(128, 10),
        ]  # fmt: skip
        functional.set_step_mode(made := nn.Sequential(*parts), "m")
        return made

    torch.save(model().state_dict(), tmp_path / "jelly.pth")
    x, y = torch.rand(64, 1, 8, 8), torch.arange(64) % 10

    def adopted() -> nn.Module:
        jelly = model()
        jelly.load_state_dict(torch.load(tmp_path / "jelly.pth", weights_only=True))
        return sd.adopt(jelly, time_steps=2, example=x[:4])

    def foreign() -> nn.Module:
        return sd.foreign(model(), reset=functional.reset_net, time_steps=2)

    distil = [{"type": "cross_entropy"}, {"type": "logit_distillation"}]
    recipe = {
        "data": {"batch_size": 32}, "compile": False, "time_steps": 2,
        "stages": [
            {"name": "teacher", "network": {"name": "foreign"}, "epochs": 1},
            {"name": "student", "network": {"name": "mine"}, "teacher": "teacher", "epochs": 1,
            "objectives": distil},
            {"name": "small", "from": "student", "teacher": "student", "objectives": distil,
            "quantize": {"weight_bits": 4}, "epochs": 1},
        ],
    }  # fmt: skip
    data = {"x_train": x, "y_train": y, "x_test": x[:16], "y_test": y[:16]}
    run = sd.train(
        recipe, {"mine": adopted, "foreign": foreign}, data, out=tmp_path / "run", device="cpu", quiet=True
    )
    assert len(run.summary.stages) == 3
    quantized = sd.load(run.folder, network=adopted())
    logits = quantized.eval().predict(x)
    assert torch.equal(sd.to_integer(quantized).predict(x), logits)


def test_a_public_snntorch_checkpoint(shared_data: Path) -> None:
    """NeuroBench's network for speech commands: four Leaky layers, threshold subtracted, beta 0.9."""
    snn = pytest.importorskip("snntorch")
    file = shared_data / "public" / "checkpoints" / "neurobench_gsc_s2s_snntorch"
    if not file.exists():
        pytest.skip(f"no {file.name}")
    sizes, parts = (20, 256, 256, 256, 35), [nn.Flatten()]
    for k in range(4):
        parts += [nn.Linear(sizes[k], sizes[k + 1]), snn.Leaky(beta=0.9, init_hidden=True, output=k == 3)]
    model = nn.Sequential(*parts)
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    torch.manual_seed(0)
    x = torch.randn(4, 20, 20)
    network = sd.adopt(model, time_steps=20, example=x, input="frames")
    assert network.differs["float64"] == 0
    assert network.differs["float32"] < 1e-3
    assert [n.reset_by for n in neurons.layers(network).values()] == pytest.approx([1 / 0.9] * 4)
    assert all(s.any() for s in taps.captures(network, x, ["*@spikes"])[1].tensors.values())
    assert sum(layer.kind == "linear" for layer in sd.hardware.layers(network, x)) == 4
