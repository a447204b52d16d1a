import pytest
import torch
from torch import nn

from spikedistill import simulation
from spikedistill.simulation import Simulation


def test_calls_are_counted_for_each_module():
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    sim = Simulation(net, 4)
    assert [sim.call(net[0]), sim.call(net[1]), sim.call(net[0])] == [0, 0, 1]
    assert sim.path(net[1]) == "1"
    assert sim.path(nn.ReLU()) == ""


def test_a_simulation_is_current_only_inside_and_nests():
    outer, inner = Simulation(nn.ReLU(), 1), Simulation(nn.ReLU(), 2)
    assert simulation.current() is None
    with outer:
        with inner:
            assert simulation.current() is inner
        assert simulation.current() is outer
    assert simulation.current() is None


def test_an_error_inside_closes_the_simulation():
    with pytest.raises(KeyError), Simulation(nn.ReLU(), 1):
        raise KeyError
    assert simulation.current() is None


def test_reentering_restores_the_counts_for_its_duration():
    net = nn.ReLU()
    sim = Simulation(net, 4)
    sim.call(net)
    snapshot = sim.snapshot()
    sim.call(net)
    with sim.reenter(snapshot):
        assert simulation.current() is sim
        assert sim.recomputing
        assert sim.call(net) == 1
    assert not sim.recomputing
    assert sim.call(net) == 2


def test_wants_only_what_was_asked():
    net = nn.Sequential(nn.ReLU())
    sim = Simulation(net, 4, insides=[("0", 1, "membrane")])
    assert sim.wants(net[0], 1, "membrane")
    assert not sim.wants(net[0], 0, "membrane")
    assert not sim.wants(net[0], 1, "spikes")
    sim.keep(net[0], 1, "membrane", torch.ones(1))
    assert sim.captured == {("0", 1, "membrane"): torch.ones(1)}


def test_states_are_kept_only_when_streaming():
    net = nn.Sequential(nn.ReLU())
    still = Simulation(net, 4)
    still.final(net[0], 0, torch.ones(1))
    assert still.state_out == {}
    assert still.initial(net[0], 0) is None
    stream = Simulation(net, 1, state={"step": 3, "0#0": torch.ones(1)})
    assert stream.step == 3
    assert stream.initial(net[0], 0) == 1
    stream.final(net[0], 0, torch.zeros(1))
    assert stream.state_out == {"0#0": torch.zeros(1)}


def test_time_steps_holds_for_one_network_and_no_ann():
    a, b = nn.ReLU(), nn.ReLU()
    with simulation.time_steps(a, 7):
        assert simulation.steps_for(a, 4) == 7
        assert simulation.steps_for(b, 4) == 4
        assert simulation.steps_for(a, None) is None
    assert simulation.steps_for(a, 4) == 4
    with pytest.raises(ValueError, match="at least 1, found 0"), simulation.time_steps(a, 0):
        pass
