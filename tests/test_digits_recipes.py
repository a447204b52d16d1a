"""Every stage that a digits recipe trains learns: floors over three seeds, and near the best of them all."""

from statistics import fmean

import pytest

import spikedistill as sd
from spikedistill.recipe import shipped

RECIPES = sorted(name for name in shipped() if name == "digits" or name.startswith("digits-"))
FLOOR, COARSE_FLOOR = 0.93, 0.88  # coarse: two bits of weights, or a single time step
BEST, NEAR = 0.981, 0.03  # what the best spiking stage reaches, and how far below it the others may lie
# What is there to be looked at, not to learn well: an ANN's start, and less than a fifth of the operations.
EXEMPT = {("digits-operations", "plain"), ("digits-operations", "aim-30k")}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_trained_stage_learns(name: str, tmp_path) -> None:
    summaries = [sd.train(name, out=tmp_path / str(seed), seed=seed, quiet=True).summary for seed in range(3)]
    for stage in summaries[0].stages:
        if not stage.epochs or (name, stage.name) in EXEMPT:
            continue
        accuracy = fmean(summary.stage(stage.name).accuracy for summary in summaries)
        coarse = stage.time_steps == 1 or (stage.bits is not None and stage.bits.weight == 2)
        assert accuracy >= (COARSE_FLOOR if coarse else FLOOR), f"{name}: {stage.name} {100 * accuracy:.1f} %"
        if stage.kind == "snn" and not coarse:
            assert accuracy >= BEST - NEAR, f"{name}: {stage.name} {100 * accuracy:.1f} %"
