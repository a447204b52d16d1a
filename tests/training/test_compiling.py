import time

import pytest
import torch

import spikedistill as sd
from spikedistill.neurons import compilation
from spikedistill.training import machine


@pytest.fixture
def distiller() -> sd.Distiller:
    return sd.Distiller(sd.networks.create("conv6", width=0.125)).setup(torch.rand(2, 3, 8, 8))


@pytest.fixture
def free(monkeypatch) -> None:
    """As on a user's machine, where nothing forbids compiling."""
    monkeypatch.delenv("SPIKEDISTILL_EAGER", raising=False)


BATCH = torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)


def test_long_runs_compile_and_short_ones_do_not(distiller, free):
    with machine.compiling(False):  # a run's own context must not hide what the process allows
        assert machine.worth_compiling(distiller, *BATCH, steps=10**9)
        assert not machine.worth_compiling(distiller, *BATCH, steps=19)


def test_a_step_that_waits_is_not_a_long_one(distiller, free):
    distiller.student.register_forward_pre_hook(lambda *_: time.sleep(0.25))  # as on a busy machine
    with machine.compiling(False):
        assert 0.25 * 400 * machine.SAVED > machine.COMPILE_SECONDS
        assert not machine.worth_compiling(distiller, *BATCH, steps=400)


def test_what_the_user_forbids_stays_forbidden(distiller, free, monkeypatch):
    with sd.eager():
        assert not machine.worth_compiling(distiller, *BATCH, steps=10**9)
        with machine.compiling(True):
            assert compilation.mode() == "eager"
    monkeypatch.setenv("SPIKEDISTILL_EAGER", "1")
    with machine.compiling(True):
        assert compilation.mode() == "eager"


def test_an_ann_has_nothing_to_compile(free):
    ann = sd.Distiller(sd.networks.create("conv6", width=0.125, time_steps=None)).setup(BATCH[0])
    assert not machine.worth_compiling(ann, *BATCH, steps=10**9)


def test_asking_leaves_no_trace(distiller, free):
    before = {k: v.clone() for k, v in distiller.state_dict().items()}
    state = torch.random.get_rng_state()
    machine.worth_compiling(distiller, *BATCH, steps=10**9)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in distiller.parameters())
    for key, value in distiller.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_step_that_is_timed_keeps_no_more_than_the_training(distiller, free, monkeypatch):
    kept = []
    original = machine.saving

    def saving(memory, network):
        kept.append(memory)
        return original(memory, network)

    monkeypatch.setattr(machine, "saving", saving)
    machine.worth_compiling(distiller, *BATCH, steps=400, memory="lean")
    assert kept == ["lean", "lean"]
