"""NaN and infinity: never applied, never written, named by step, layer, objective, file."""

import copy
import math

import pytest
import torch
from torch import nn

import spikedistill as sd
from spikedistill import finite, objectives
from spikedistill.data import from_arrays
from spikedistill.networks.outside.library import load_weights
from spikedistill.training import checkpoint, diagnosis, loop
from spikedistill.training.guard import Guard
from spikedistill.training.optim import MovingAverage
from spikedistill.training.run import train

from .conftest import NET, run


class Lame(objectives.Objective):
    """Finite in value, NaN in gradient: the root of a mean that is zero."""

    def forward(self, view):
        return (view.mean_logits * 0).pow(2).mean().sqrt()


class Broken(objectives.Objective):
    """NaN in value."""

    def forward(self, view):
        return view.mean_logits.mean() * math.nan


@pytest.fixture
def alone(small, monkeypatch):
    """The student without a teacher."""
    small["stages"] = [{"name": "student", "network": dict(NET), "epochs": 2}]
    monkeypatch.setitem(objectives.TYPES, "lame", Lame)
    monkeypatch.setitem(objectives.TYPES, "broken", Broken)
    return small


def late(monkeypatch) -> None:
    """As on a GPU: the flag is read at the end of an epoch only, the optimizer's kernel looks at it."""
    monkeypatch.setattr(loop, "READ_EVERY_STEP", ())


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(
    "optimizer", [{"name": "sgd"}, {"name": "adamw", "lr": 0.001, "clip": 1.0, "ema": None}]
)
def test_a_gradient_that_is_nan_is_not_applied_and_its_objective_named(
    alone, images, tmp_path, monkeypatch, on_gpu, optimizer
):
    alone["stages"][0]["objectives"] = [{"type": "cross_entropy"}, {"type": "lame"}]
    alone["stages"][0]["optimizer"] = optimizer
    seen = []
    if on_gpu:
        late(monkeypatch)
        monkeypatch.setattr(loop, "explain", lambda training, step: _kept(seen, training, step))
    with pytest.raises(sd.SpikedistillError) as error:
        run(alone, images, tmp_path / "run")
    if on_gpu:
        training, before = seen
        assert all(torch.equal(v, before[k]) for k, v in training.student.named_parameters())
    assert "gradient of objective 'lame' at step 0" in str(error.value)
    assert "weight of layer" in str(error.value)
    assert "learning rate" not in str(error.value)


class Drawing(nn.Module):
    """Draws once in each pass, as dropout does, and keeps what it drew in training."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        self.drawn = []

    def forward(self, x):
        draw = torch.rand(())
        if self.training:
            self.drawn.append(float(draw))
        return self.layers(x) + draw


def test_the_passes_that_look_for_the_cause_have_the_draws_of_the_step(alone, images, tmp_path, monkeypatch):
    """Two batches to a step: their two passes, then both again for size, losses, and each objective."""
    alone["optimizer"]["accumulate"] = 2
    alone["stages"][0] |= {
        "network": {"name": "mine"}, "objectives": [{"type": "cross_entropy"}, {"type": "lame"}],
    }  # fmt: skip
    drawn = []

    def explained(training, step):
        found = diagnosis.explain(training, step)
        drawn.extend(next(m for m in training.student.modules() if isinstance(m, Drawing)).drawn)
        return found

    monkeypatch.setattr(loop, "explain", explained)
    with pytest.raises(sd.SpikedistillError, match="gradient of objective 'lame' at step 0"):
        train(alone, {"mine": Drawing}, images, out=tmp_path / "run", quiet=True, device="cpu")
    first, second, *after = drawn[-9:]
    assert first != second
    assert after == [first, second] * 3 + [first]


def _kept(seen, training, step):
    from spikedistill.randomness import seed_everything
    from spikedistill.training.diagnosis import explain

    with torch.random.fork_rng():
        seed_everything(training.settings.seed, "initial weights")
        fresh = sd.networks.create(**_options(training.student))
    seen += [training, dict(fresh.named_parameters())]
    return explain(training, step)


def _options(network):
    return {"name": network.config["name"], **network.config["options"]}


def test_an_objective_that_is_nan_is_named(alone, images, tmp_path):
    alone["stages"][0]["objectives"] = [{"type": "cross_entropy"}, {"type": "broken"}]
    with pytest.raises(sd.SpikedistillError, match=r"objective 'broken' is nan at step 0") as error:
        run(alone, images, tmp_path / "run")
    assert "learning rate" not in str(error.value)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_nan_pixel_is_the_datas_fault(alone, images, tmp_path, monkeypatch, on_gpu):
    if on_gpu:
        late(monkeypatch)
    alone["data"].pop("augment")
    floats = {k: v.astype("float32") / 255 if k.startswith("x") else v for k, v in images.items()}
    data = from_arrays(floats)
    store = data.splits["train"].pieces[0][0].store
    store.data[int(data.splits["train"].pieces[0][1][7]), 0, 2, 3] = math.nan
    with pytest.raises(
        sd.SpikedistillError, match=r"the data: batch \d of epoch \d holds NaN .* image \d+ \(step \d\)"
    ):
        run(alone, data, tmp_path / "run")


@pytest.mark.parametrize("what", ["stage1.0.weight", "stage1.1.running_var", "momentum"])
def test_nan_in_weights_statistics_or_momentum_is_never_written(alone, images, tmp_path, monkeypatch, what):
    alone["checkpoint"] = {"steps": 1}
    alone["optimizer"].pop("ema")
    original = loop.Training.next_batch
    good = {}

    def poisoned(self, batches, step, k):
        if step == 4:
            good.update(checkpoint.load(self.checkpoint_folder)[0])
            if what == "momentum":
                next(iter(self.optimizer.state.values()))["momentum_buffer"].view(-1)[0] = math.nan
            else:
                self.student.state_dict()[what].view(-1)[0] = math.nan
        return original(self, batches, step, k)

    monkeypatch.setattr(loop.Training, "next_batch", poisoned)
    with pytest.raises(sd.SpikedistillError, match=r"NaN or infinity|gradient of objective|the loss is"):
        run(alone, images, tmp_path / "run")
    kept, state = checkpoint.load(tmp_path / "run" / "checkpoints" / "student")
    assert state["position"]["step"] == 4
    assert all(torch.equal(kept[k], v) for k, v in good.items())
    monkeypatch.setattr(loop.Training, "next_batch", original)
    run(alone, images, tmp_path / "run")


def test_the_flag_names_the_first_step_and_holds_back_all_that_follow():
    weight = nn.Parameter(torch.ones(3))
    guard = Guard(torch.device("cpu"))
    optimizer = torch.optim.Adam([weight], 0.1, fused=True)
    for step in range(4):
        weight.grad = torch.full((3,), math.inf if step == 2 else 1.0)
        guard.look(step, [torch.zeros(2)], [weight])
        guard.update(optimizer)
        if step == 1:
            before = weight.detach().clone()
    assert guard.first_bad_step() == 2
    assert torch.equal(weight, before)
    huge = nn.Parameter(torch.ones(3))
    huge.grad = torch.full((3,), 3e38)  # its sum of squares is infinite, it is not
    guard = Guard(torch.device("cpu"))
    guard.look(0, [], [huge])
    assert guard.first_bad_step() is None


def test_an_optimizer_that_is_not_fused_is_held_back_too():
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), math.nan)
    guard = Guard(torch.device("cpu"))
    guard.look(0, [], [weight])
    guard.update(torch.optim.SGD([weight], 0.1))
    assert torch.equal(weight, torch.ones(3))


def test_doors(tmp_path, small, images):
    snn = sd.networks.create("conv6", width=0.0625, in_channels=1)
    ann = sd.networks.create("conv6", width=0.0625, in_channels=1, time_steps=None)
    x = torch.rand(4, 1, 8, 8)
    for network in (snn, ann):
        network.eval()
        network.state_dict()["stage2.1.running_var"][0] = math.inf
    named = r"running_var of layer stage2\.1 holds NaN or infinity"
    with pytest.raises(sd.SpikedistillError, match=f"quantize.*{named}"):
        sd.quantize(snn, calibration=x)
    with pytest.raises(sd.SpikedistillError, match=f"convert.*{named}"):
        sd.convert(ann, x, 4)
    with pytest.raises(sd.SpikedistillError, match=f"to_onnx.*{named}"):
        sd.export.to_onnx(snn, tmp_path / "a.onnx", x)
    pytest.importorskip("nir")
    with pytest.raises(sd.SpikedistillError, match=f"to_nir.*{named}"):
        sd.export.to_nir(snn, tmp_path / "a.nir", x)


def test_files_of_weights_and_inputs_to_calibrate_on(tmp_path):
    network = sd.networks.create("conv6", width=0.0625, in_channels=1)
    state = copy.deepcopy(network.state_dict())
    state["head.bias"][1] = math.nan
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(sd.SpikedistillError, match=r"w\.pt: bias of layer head holds NaN"):
        load_weights(network, tmp_path / "w.pt")
    x = torch.rand(4, 1, 8, 8)
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(sd.SpikedistillError, match=r"calibration: batch 1 holds NaN"):
        sd.quantize(network, calibration=[torch.rand(4, 1, 8, 8), x])


def test_a_network_with_nan_is_neither_saved_nor_loaded(tmp_path):
    from spikedistill.training.store import load_network, save_network

    network = sd.networks.create("conv6", width=0.0625, in_channels=1)
    save_network(tmp_path / "good", network, {}, "")
    network.state_dict()["head.weight"][0, 0] = math.nan
    with pytest.raises(sd.SpikedistillError, match=r"weight of layer head holds NaN"):
        save_network(tmp_path / "bad", network, {}, "")
    assert not (tmp_path / "bad").exists()
    import hashlib

    from safetensors.torch import save_file

    file = tmp_path / "good" / "model.safetensors"
    save_file(dict(network.state_dict()), file)
    config = checkpoint.read_json(tmp_path / "good" / "config.json")
    config["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "good" / "config.json").write_bytes(
        checkpoint.sealed({k: v for k, v in config.items() if k != "checksum"})
    )
    with pytest.raises(sd.SpikedistillError, match=r"model\.safetensors: weight of layer head holds NaN"):
        load_network(tmp_path / "good")


def test_a_mask_of_infinity_is_no_fault():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    masked = Masked()
    assert finite.of(masked) == []
    masked.mask[0] = math.nan
    assert finite.of(masked) == ["mask"]


class Masked(nn.Module):
    """A mask as attention has it, kept in the weights' file, and a statistic."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, 0.0]))

    def forward(self, x):
        return self.layers(x) + torch.where(torch.isinf(self.mask), 0, self.mask)


def test_a_training_with_a_mask_of_infinity_goes_on_from_its_checkpoint(alone, images, tmp_path, monkeypatch):
    alone["stages"][0]["network"] = {"name": "mine"}

    def trained(folder):
        return train(alone, {"mine": Masked}, images, out=folder, quiet=True, device="cpu").folder

    whole = trained(tmp_path / "whole")
    original = loop.Training.save

    def save(self):
        original(self)
        if self.position.step >= 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "save", save)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "run")
    parts = {"model.student.mask", "average.mask", "best.mask"}
    state = checkpoint.load(tmp_path / "run" / "checkpoints" / "student", parts)
    for name in parts:
        assert state[0][name].tolist() == [0.0, -math.inf, 0.0]
    resumed = trained(tmp_path / "run")
    for file in ("model.safetensors", "best.safetensors"):
        assert (resumed / "stages/student" / file).read_bytes() == (
            whole / "stages/student" / file
        ).read_bytes()


def test_a_file_of_weights_may_hold_a_mask_of_infinity(tmp_path):
    masked, other = Masked(), Masked()
    torch.save(masked.state_dict(), tmp_path / "w.pt")
    other.mask.zero_()
    assert load_weights(other, tmp_path / "w.pt").mask.tolist() == [0.0, -math.inf, 0.0]
    masked.layers[0].running_var[0] = math.inf
    torch.save(masked.state_dict(), tmp_path / "w.pt")
    with pytest.raises(sd.SpikedistillError, match=r"running_var of layer layers\.0 holds NaN or infinity"):
        load_weights(other, tmp_path / "w.pt")


def test_infinity_is_refused_where_it_is_no_masks_and_nan_everywhere(tmp_path):
    checkpoint.save(tmp_path / "a", {"mask": torch.tensor([-math.inf, 1.0])}, {})
    assert checkpoint.load(tmp_path / "a", ["mask"])[0]["mask"].tolist() == [-math.inf, 1.0]
    with pytest.raises(sd.SpikedistillError, match="mask holds NaN or infinity"):
        checkpoint.load(tmp_path / "a")
    checkpoint.save(tmp_path / "b", {"mask": torch.tensor([-math.inf, math.nan])}, {})
    with pytest.raises(sd.SpikedistillError, match="mask holds NaN or infinity"):
        checkpoint.load(tmp_path / "b", ["mask"])
    assert finite.mask_names(Masked()) == {"mask", "layers.0.num_batches_tracked"}


def test_the_average_copies_a_masks_infinity_and_averages_all_else():
    masked = Masked()
    masked.register_buffer("scale", torch.tensor([1.0, 2.0]))
    average = MovingAverage(masked, 0.75)
    with torch.no_grad():
        masked.scale.copy_(torch.tensor([3.0, 2.0]))
        masked.mask.copy_(torch.tensor([-math.inf, -math.inf, 0.0]))
        masked.layers[2].bias += 1
    before = average.values["layers.2.bias"].clone()
    average.update(masked)
    assert average.values["mask"].tolist() == [-math.inf, -math.inf, 0.0]
    assert average.values["scale"].tolist() == [1.5, 2.0]
    torch.testing.assert_close(average.values["layers.2.bias"], before + 0.25)
    masked.mask.zero_()
    average.update(masked)
    assert average.values["mask"].tolist() == [0.0, 0.0, 0.0]
    masked.mask[0] = math.nan
    average.update(masked)
    assert math.isnan(average.values["mask"][0])
