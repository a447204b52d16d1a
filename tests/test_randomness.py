"""Random state: the same whatever is drawn aside, on machines with several GPUs too."""

from pathlib import Path

import torch

import spikedistill
from spikedistill.randomness import apart, seed_everything, seed_of


def test_what_is_drawn_apart_moves_nothing():
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    with apart():
        seed_everything("elsewhere", 1)
        torch.rand(7)
    assert torch.equal(torch.rand(4), want)


def test_a_position_is_a_seed_of_its_own():
    seeds = {seed_of("run", step, rank) for step in range(20) for rank in range(3)}
    assert len(seeds) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_no_generator_is_forked_without_saying_of_which_devices():
    """torch then takes all GPUs, and warns of it where there are several."""
    source = Path(spikedistill.__file__).parent
    silent = [p.name for p in source.rglob("*.py") if "fork_rng()" in p.read_text(encoding="utf-8")]
    assert silent == []
