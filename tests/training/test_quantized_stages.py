"""Every option of ``quantize``: trained with the shipped optimizers, saved, loaded, evaluated, exported."""

from inspect import signature
from pathlib import Path

import pytest
import torch

from spikedistill import data as datasets
from spikedistill.errors import SpikedistillError
from spikedistill.quantization import quantize, to_integer
from spikedistill.quantization.preparation import DEFAULTS
from spikedistill.training import store, summary
from spikedistill.training.reevaluate import reevaluate
from spikedistill.training.run import train

CASES: dict[str, list[dict]] = {
    "weight_bits": [{"weight_bits": None}, {"weight_bits": 2},
    {"weight_bits": None, "first_last_bits": None}],
    "membrane_bits": [{"membrane_bits": None}, {"membrane_bits": 8},
    {"membrane_bits": None, "unit": "learned"}],
    "norm_bits": [{"norm_bits": None}, {"norm_bits": 3}],
    "leak_bits": [{"leak_bits": None}, {"leak_bits": 2}],
    "fraction_bits": [{"fraction_bits": 1}, {"fraction_bits": 16}],
    "residual_bits": [{"residual_bits": 4}, {"residual_bits": 24}],
    "input_bits": [{"input_bits": 2}],
    "first_last_bits": [{"first_last_bits": None}, {"first_last_bits": 2}],
    "weight_scale": [{"weight_scale": "tensor"}, {"weight_scale": "channel"}],
    "weight_range": [{"weight_range": r} for r in (None, "max", "percentile", "mse", "learned")],
    "unit": [{"unit": u} for u in ("threshold", "max", "percentile", "learned", "weights")],
    "percentile": [{"percentile": 50.0, "weight_range": "percentile", "unit": "percentile"}],
    "scheme": [{"scheme": "mint"}, {"scheme": "mint", "weight_range": "max"},
    {"scheme": "mint", "norm_bits": None}],
    "freeze_norms": [{"freeze_norms": True}, {"freeze_norms": True, "scheme": "mint"}],
    "input_size": [{"input_size": [3, 8, 8]}],
}  # fmt: skip


def test_every_option_has_a_case():
    assert CASES.keys() == signature(quantize).parameters.keys() - {"network", "calibration"}


def _recipe(base: dict, network: str, options: dict, optimizer: str) -> dict:
    lr = 0.05 if optimizer == "sgd" else 0.002
    neuron = {"type": "plif", "threshold": 0.5}
    return base | {
        "optimizer": {"name": optimizer, "lr": lr},
        "stages": [
            {"name": "float", "network": {"name": network, "width": 0.125, "neuron": neuron}, "epochs": 1},
            {"name": "few", "from": "float", "epochs": 1, "quantize": options},
        ],
    }


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
@pytest.mark.parametrize("network", ["vgg5", pytest.param("ms_resnet20", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [o for cases in CASES.values() for o in cases], ids=str)
def test_a_stage_trains_loads_and_is_taken_everywhere(
    tmp_path: Path, recipe, arrays, network, optimizer, options
):
    if (
        network == "ms_resnet20"
        and {"scheme", "unit"} & options.keys()
        and options.get("unit") in (None, "weights")
    ):
        pytest.skip("folded norms refuse streams")
    given = _recipe(recipe, network, options, optimizer)
    x = torch.from_numpy(arrays["x_test"][:24]).permute(0, 3, 1, 2).float() / 255
    small = {key: value[: 48 if "train" in key else 24] for key, value in arrays.items()}
    run = train(given, data=small, out=tmp_path / "run", device="cpu", quiet=True)
    trained, again = store.load(run.folder, "few"), store.load(run.folder, "few")
    row = summary.read(run.folder).stage("few")
    with torch.no_grad():
        logits = trained.predict(x)
        assert torch.equal(again.predict(x), logits)
    # What the stage itself measured was the network that its folder holds.
    y = torch.from_numpy(small["y_test"])
    assert row.accuracy == pytest.approx(float((logits.argmax(1) == y).float().mean()), abs=1e-6)
    assert trained.config["quantize"]["weight_range"] is not None
    reals = [
        name for name in ("weight_bits", "norm_bits", "leak_bits") if {**DEFAULTS, **options}[name] is None
    ]
    again_measured = reevaluate(f"{run.folder}:few", data=datasets.from_arrays(small))
    assert [*again_measured.columns["accuracy"].values()] == [row.accuracy]
    assert (row.integer is None) == bool(reals)
    if reals:
        with pytest.raises(SpikedistillError, match=f"{reals[0]} is None"):
            to_integer(again)
    else:
        assert row.integer.equal_predictions
        assert torch.equal(to_integer(again).predict(x), logits)


class Own(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.pool = torch.nn.MaxPool2d(2)
        self.head = torch.nn.Linear(8 * 4, 4)

    def forward(self, x):
        return self.head(self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1))


@pytest.mark.parametrize("options", [{"unit": "max"}, {"scheme": "mint"}], ids=str)
def test_a_network_of_ones_own_is_loaded_quantized(tmp_path: Path, recipe, arrays, options):
    given = recipe | {
        "stages": [
            {"name": "float", "network": {"name": "own", "spiking": True}, "epochs": 1},
            {"name": "few", "from": "float", "epochs": 1, "quantize": options},
        ]
    }
    run = train(given, {"own": Own}, arrays, out=tmp_path / "run", device="cpu", quiet=True)
    x = torch.from_numpy(arrays["x_test"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        right = store.load(run.folder, "few", Own()).predict(x).argmax(1) == torch.from_numpy(
            arrays["y_test"]
        )
    assert float(right.float().mean()) == pytest.approx(summary.read(run.folder).stage("few").accuracy)
    assert (
        train(given, {"own": Own}, arrays, out=tmp_path / "run", device="cpu", quiet=True).folder
        == run.folder
    )
