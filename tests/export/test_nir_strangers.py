"""NIR files that others wrote, real and forged."""

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spikedistill as sd
from spikedistill.data import FramesConfig
from spikedistill.data.event_files import read_bin
from spikedistill.data.frames import bin_events
from spikedistill.export import from_nir, to_nir

nir = pytest.importorskip("nir")
h5py = pytest.importorskip("h5py")


@pytest.fixture
def public(shared_data: Path) -> Path:
    """Graphs and recordings by other people; skips without them."""
    if not (shared_data / "public" / "nir").exists():
        pytest.skip(f"no graphs in {shared_data}")
    return shared_data / "public"


def chain(*nodes: Any, size: Any = (1,), classes: int = 1) -> Any:
    """A graph of nodes one after the other."""
    named = {f"n{i}": node for i, node in enumerate(nodes)}
    every = {
        "input": nir.Input({"input": np.array(size)}),
        **named,
        "output": nir.Output({"output": np.array([classes])}),
    }
    names = list(every)
    return nir.NIRGraph(every, list(pairwise(names)), type_check=False)


def lif(tau: float = 1e-3, r: float = 1.0, threshold: float = 1.0) -> Any:
    one = np.ones(1)
    return nir.LIF(tau=one * tau, r=one * r, v_leak=0 * one, v_threshold=one * threshold, v_reset=0 * one)


def firsts(network: sd.networks.Network, current: float, steps: int) -> list[int]:
    """The steps, from 1, at which the only output spikes."""
    out = network(torch.full((1, steps, 1), current))[:, 0, 0]
    return (torch.nonzero(out).flatten() + 1).tolist()


def test_the_papers_cnn_recognises_a_four(public: Path) -> None:
    e = read_bin(public / "events" / "nmnist_sample.bin")
    x = torch.from_numpy(bin_events(e, 104, (34, 34), FramesConfig())).float()[None]
    with pytest.warns(
        UserWarning, match=r"paper_cnn_sinabs\.nir: at a time step of 1e-4 .* could never fire.*time_step=1"
    ):
        network = from_nir(public / "nir" / "paper_cnn_sinabs.nir", time_steps=104)
    counts = network(x).sum((0, 1))
    assert (int(counts[4]), int(counts.sum())) == (66, 68)
    silent = from_nir(public / "nir" / "paper_cnn_sinabs.nir", time_steps=104, time_step=1e-4)
    assert not silent(x).any()


@pytest.mark.parametrize("author", ["exact", "norse", "snntorch"])
def test_the_papers_lif_spikes_with_theirs(public: Path, author: str) -> None:
    trace = np.loadtxt(public / "nir" / f"lif_{author}.csv", delimiter=",")
    network = from_nir(public / "nir" / "lif_norse.nir", time_steps=len(trace))
    spikes = network(torch.from_numpy(trace[:, 0]).float().view(1, -1, 1))[:, 0, 0]
    assert (
        torch.nonzero(spikes).flatten().tolist()
        == np.flatnonzero(trace[:, 2]).tolist()
        == [460, 510, 710, 760]
    )


def test_loops_and_leak_potentials_are_refused_by_name(public: Path) -> None:
    with pytest.raises(sd.SpikedistillError, match=r"loop \(.*lif1\.lif -> lif1\.w_rec|loop \(lif1\.w_rec"):
        from_nir(public / "nir" / "braille_noDelay_bias_zero.nir")
    with pytest.raises(sd.SpikedistillError, match=r"'lif1': v_leak must be 0, found 1\.2"):
        from_nir(public / "nir" / "two_lif_neurons.nir")


def test_an_if_with_r_1_counts_steps(tmp_path: Path) -> None:
    nir.write(tmp_path / "a.nir", chain(nir.IF(np.ones(1), np.ones(1))))
    with pytest.warns(UserWarning, match="'n0' could never fire"):
        network = from_nir(tmp_path / "a.nir", time_steps=48)
    assert firsts(network, 0.0625, 48) == [16, 32, 48]
    assert firsts(from_nir(tmp_path / "a.nir", 48, time_step=0.5), 0.0625, 48) == [32]
    with pytest.raises(sd.SpikedistillError, match="time_step must be more than 0"):
        from_nir(tmp_path / "a.nir", time_step=0.0)


@pytest.mark.parametrize(
    "nodes",
    [
        (nir.IF(np.full(1, 1e4), np.ones(1)),),  # written for a step of 1e-4
        # the weights make up for r
        (nir.Linear(np.full((1, 1), 1e4, np.float32)), nir.IF(np.ones(1), np.ones(1))),
        (lif(2.5e-3),),
        (lif(1e-2, threshold=20.0),),  # slow, but in seconds: only a stronger input will do
    ],
)
def test_neurons_that_can_fire_keep_the_usual_step(nodes: Any, tmp_path: Path) -> None:
    nir.write(tmp_path / "a.nir", chain(*nodes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network, same = from_nir(tmp_path / "a.nir"), from_nir(tmp_path / "a.nir", time_step=1e-4)
    assert firsts(network, 1.0, 4) == firsts(same, 1.0, 4)


def test_a_lif_whose_tau_counts_steps(tmp_path: Path) -> None:
    nir.write(tmp_path / "a.nir", chain(lif(tau=2.0, r=2.0)))
    with pytest.warns(UserWarning, match="could never fire"):
        network = from_nir(tmp_path / "a.nir", time_steps=4)
    assert firsts(network, 0.6, 4) == [3]  # 0.6, 0.9, 1.05
    nir.write(tmp_path / "b.nir", chain(lif(tau=1e-3), nir.IF(np.ones(1), np.ones(1))))
    with pytest.raises(sd.SpikedistillError, match=r"'n1' could never fire.*'n0' has a time constant below"):
        from_nir(tmp_path / "b.nir")


def test_our_own_files_keep_their_step(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 8, 8)
    network = sd.networks.create(
        "vgg5", width=0.05, pooling="avg", neuron=sd.IF(threshold=1e6), time_steps=2
    ).eval()
    to_nir(network, tmp_path / "a.nir", x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_nir(tmp_path / "a.nir")
        from_nir(tmp_path / "a.nir", metadata=False)


CONV = {
    "input_shape": (4, 4),
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "bias": np.zeros(2, np.float32),
}


def conv(**options: Any) -> Any:
    return nir.Conv2d(**{**CONV, "weight": np.ones((2, 1, 3, 3), np.float32), **options})


@pytest.mark.parametrize(
    "graph,words",
    [
        (chain(lif(tau=0.0)), "tau = 0 is below the time step"),
        (chain(lif(tau=-1.0)), "tau = -1 is below the time step"),
        (chain(lif(tau=1e-5)), "tau = 1e-05 is below the time step"),
        (chain(lif(tau=np.nan)), "'n0': tau holds NaN"),
        (chain(lif(r=np.inf)), "'n0': r holds NaN, infinity"),
        (chain(nir.Linear(np.full((1, 1), np.nan))), "'n0': weight holds NaN"),
        (chain(nir.Linear(np.ones((1, 5)))), "'n0' does not fit its input"),
        (chain(conv(padding=1_000_003), size=(1, 4, 4)), r"'n0' gives the shape .* at most 268,435,456"),
        (chain(conv(groups=0), size=(1, 4, 4)), "'n0', a Conv2d, cannot be built"),
        (chain(conv(dilation=100), size=(1, 4, 4)), "'n0' does not fit its input"),
        (chain(conv(bias=np.zeros(7, np.float32)), size=(1, 4, 4)), "'n0', a Conv2d, cannot be built"),
        (chain(conv(), size=(1, 4, 4)), "logits have one axis"),
        (chain(lif(), size=(2**40,)), "the graph's input has the shape"),
        (chain(lif(), size=(0, 4, 4)), "the graph's input has the shape"),
        (chain(lif(), size=(1, 2, 3, 4, 5)), "the graph's input has the shape"),
    ],
)
def test_graphs_of_impossible_numbers(graph: Any, words: str, tmp_path: Path) -> None:
    nir.write(tmp_path / "a.nir", graph)
    # releases of the nir package that infer types refuse some of these themselves
    with pytest.raises(
        sd.SpikedistillError, match=rf"{words}|a\.nir as a NIR graph: Type inference error"
    ) as raised:
        from_nir(tmp_path / "a.nir")
    assert "\n" not in str(raised.value)


def test_edges_to_nowhere_and_unfed_nodes(tmp_path: Path) -> None:
    graph = chain(lif(r=1e3))
    for edges, words in (
        ([("input", "n0"), ("n0", "gone"), ("n0", "output")], "'gone'"),
        ([("input", "output")], "must be fed by others"),
        ([("input", "n0"), ("n0", "output"), ("n0", "input")], "loop"),
    ):
        graph.edges = edges
        nir.write(tmp_path / "a.nir", graph)
        with pytest.raises(sd.SpikedistillError, match=words):
            from_nir(tmp_path / "a.nir")


def test_names_that_become_one_stay_apart(tmp_path: Path) -> None:
    nodes = {"input": nir.Input({"input": np.array([1])}), "a.b": nir.Linear(np.full((1, 1), 2.0)),
             "a_b": nir.Linear(np.full((1, 1), 3.0)),
             "output": nir.Output({"output": np.array([1])})}  # fmt: skip
    nir.write(tmp_path / "a.nir", nir.NIRGraph(nodes, list(pairwise(nodes))))
    assert from_nir(tmp_path / "a.nir", time_steps=1)(torch.ones(1, 1, 1)).item() == 6


@pytest.mark.parametrize(
    "text",
    ["{", "[" * 100_000, "[]", '"x"', '{"time_steps": -1}', '{"time_steps": 1e99}', '{"logits_scale": 0}',
     '{"logits_scale": NaN}', '{"nodes": {"n0": {"reset": "gently"}}}', '{"nodes": {"n0": {"grid": {"unit": '
'0}}}}',
     '{"nodes": {"n0": {"grid": {"unit": 1, "threshold": 1, "leak": [1, 100000]}}}}',
     '{"codes": {"kind": "image", "limit": 1, "table": [[1]]}}', '{"nodes": []}', '{"input": 3}',
     '{"version": 9}'],
)  # fmt: skip
def test_forged_metadata(text: str, tmp_path: Path) -> None:
    graph = chain(lif(r=1e3))
    graph.metadata = {"spikedistill": text}
    nir.write(tmp_path / "a.nir", graph)
    with pytest.raises(sd.SpikedistillError, match=r"a\.nir: its metadata") as raised:
        from_nir(tmp_path / "a.nir")
    assert "\n" not in str(raised.value)
    graph.metadata = {"spikedistill": json.dumps({"time_steps": 7})}
    nir.write(tmp_path / "a.nir", graph)
    assert from_nir(tmp_path / "a.nir").time_steps == 7


def test_files_that_unpack_to_more_or_lie_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.nir"
    nir.write(path, chain(lif(r=1e3)))
    (tmp_path / "raw").write_bytes(b"\0" * 80)

    def changed(change: Any) -> None:
        nir.write(path, chain(lif(r=1e3)))
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(sd.SpikedistillError, match=r"cannot read .*a\.nir as a NIR graph"):
            from_nir(path)

    changed(lambda f: f["node"].create_dataset("big", (1 << 36,), "f8", chunks=(1 << 20,)))
    changed(lambda f: f["node"].create_dataset("far", (10,), "f8", external=[(str(tmp_path / "raw"), 0, 80)]))
    changed(lambda f: f["node"].__setitem__("link", h5py.ExternalLink(str(tmp_path / "b.nir"), "/node")))
    changed(lambda f: f["node"].__setitem__("soft", h5py.SoftLink("/node")))
    changed(lambda f: f["node"].__setitem__("self", f["node"]))
    changed(lambda f: f["node"].pop("nodes"))
