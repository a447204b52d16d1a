from pathlib import Path

import pytest
import torch
from torch import Tensor

import spikedistill as sd
from spikedistill import taps
from spikedistill.errors import SpikedistillError
from spikedistill.training import observations

T = 3


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(48, 3, 8, 8, generator=generator)
    y = torch.arange(48) % 4
    return [(x[:32], y[:32]), (x[32:], y[32:])]


def network(ann: bool = False, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    steps = None if ann else T
    return sd.networks.create("conv6", num_classes=4, width=0.125, time_steps=steps)


@pytest.fixture(scope="module")
def found(
    batches: list[tuple[Tensor, Tensor]],
) -> tuple[torch.nn.Module, torch.nn.Module, observations.Observations]:
    student, teacher = network(), network(ann=True, seed=1)
    before = torch.random.get_rng_state()
    seen = observations.observe(student, teacher, batches)
    assert torch.equal(torch.random.get_rng_state(), before)
    return student, teacher, seen


def test_agreement_is_counted(found, batches) -> None:
    student, teacher, seen = found
    with torch.no_grad():
        mine, theirs = (
            torch.cat([taps.run(net, x)[0].mean(0) for x, _ in batches])
            for net in (student.eval(), teacher.eval())
        )
    y = torch.cat([y for _, y in batches])
    a, b = mine.argmax(-1), theirs.argmax(-1)
    pair = seen.agreement
    assert pair is not None
    assert pair.equal == pytest.approx(float((a == b).float().mean()))
    assert pair.both + pair.only_student == pytest.approx(float((a == y).float().mean()))
    assert pair.both + pair.only_teacher == pytest.approx(float((b == y).float().mean()))
    assert pair.both + pair.only_student + pair.only_teacher + pair.neither == pytest.approx(1)
    p, q = theirs.softmax(-1), mine.softmax(-1)
    assert pair.divergence == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)


def test_calibration_is_that_of_the_predictions(found) -> None:
    _, _, seen = found
    bins = seen.student.calibration
    assert len(bins) == 10
    assert sum(one.images for one in bins) == seen.student.images == 48
    assert sum(one.images * one.accuracy for one in bins) / 48 == pytest.approx(seen.student.accuracy)
    assert all(k / 10 <= one.confidence <= (k + 1) / 10 for k, one in enumerate(bins) if one.images)
    error = sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / 48
    assert seen.student.error == pytest.approx(error)


def test_spikes_and_membranes_are_the_network_s(found, batches) -> None:
    student, _, seen = found
    student.eval()  # as it was observed
    x, y = batches[0]
    assert [one.target for one in seen.drawn] == [0, 1, 2]
    assert all(int(y[one.image]) == one.target for one in seen.drawn)
    with torch.no_grad():
        _, captured = taps.captures(student, x[[one.image for one in seen.drawn]], ["*@spikes", "*@membrane"])
    for n, one in enumerate(seen.drawn):
        for trace in one.layers:
            spikes = captured.all("*@spikes")[f"{trace.path}@spikes"][:, n].flatten(1)[:, trace.neurons]
            assert ["".join(str(int(s)) for s in row) for row in spikes.T] == trace.spikes
            h = captured.all("*@membrane")[f"{trace.path}@membrane"][:, n].flatten(1)[:, trace.neurons]
            h = h / captured.thresholds[f"{trace.path}@membrane"]
            assert torch.allclose(torch.tensor(trace.membranes), h.T, atol=1e-3)
            assert len(trace.spikes) <= observations.NEURONS
            assert all(len(row) == T for row in trace.spikes)


def test_layers_stand_beside_the_teacher_s(found) -> None:
    _, _, seen = found
    assert len(seen.layers) == len(seen.teacher_layers) == len(seen.likeness)
    assert all(0 <= one.share <= 1 for one in [*seen.layers, *seen.teacher_layers])
    assert all(len(row) == len(seen.teacher_layers) for row in seen.likeness)


class Teacher(torch.nn.Module):
    """A residual ANN of somebody's own; the ReLUs of its block are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())
        self.conv1, self.conv2 = (torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.head = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.conv2(torch.nn.functional.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)))


def test_relus_of_a_teacher_that_are_functions_are_layers(batches) -> None:
    torch.manual_seed(0)
    seen = observations.observe(network(), Teacher().eval(), batches)
    assert [one.path for one in seen.teacher_layers] == ["stem.1", "relu", "relu#1"]
    assert all(0 < one.share <= 1 for one in seen.teacher_layers)
    assert all(len(row) == 3 for row in seen.likeness)


def test_likeness_is_one_for_rotated_and_nothing_for_unrelated_features() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(64, 20, generator=generator)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=generator))[0]
    assert observations.likeness(a, 3 * a @ turn + 7) == pytest.approx(1, abs=1e-3)
    other = torch.randn(64, 5000, generator=generator)
    assert abs(observations.likeness(a, other)) < 0.1
    assert observations.likeness(a, torch.zeros(64, 3)) == 0


def test_an_ann_has_no_spikes_and_no_teacher(batches) -> None:
    seen = observations.observe(network(ann=True), None, batches)
    assert seen.drawn == []
    assert seen.agreement is None
    assert seen.likeness == []
    assert seen.layers


def test_the_file_is_read_as_it_was_written_and_stays_small(found, tmp_path: Path) -> None:
    _, _, seen = found
    path = tmp_path / observations.FILE
    path.write_text(observations.contents(seen))
    assert observations.read(tmp_path) == seen
    assert path.stat().st_size < 60_000
    path.write_text("{}")
    with pytest.raises(SpikedistillError, match="remove it"):
        observations.read(tmp_path)
    path.unlink()
    assert observations.read(tmp_path) is None
