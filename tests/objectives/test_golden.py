"""Golden loss curves: 30 steps per method in float64, one thread, plain equations.

`python test_golden.py [CASE ...]` writes those that are missing, and anew those that are named.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, WITHOUT_CROSS_ENTROPY, digits, networks, options

import spikedistill as sd
from spikedistill.neurons import compilation

GOLDEN = Path(__file__).with_name("golden.json")
STEPS, BATCH = 30, 16


def curve(case: str) -> list[float]:
    """Total losses of 30 steps of SGD on the first digits."""
    x, y = digits()
    student, teacher = networks(case)
    terms = (
        [options(case)]
        if case in WITHOUT_CROSS_ENTROPY
        else [{"type": "cross_entropy", "name": "ce"}, options(case)]
    )
    losses = []
    with compilation.eager():
        distiller = sd.Distiller(student, teacher, terms).double()
        distiller.setup(x[:BATCH].double())
        distiller.train()
        optimizer = torch.optim.SGD(distiller.parameters(), 0.05, momentum=0.9)
        for step in range(STEPS):
            torch.manual_seed(step)
            at = BATCH * step
            optimizer.zero_grad()
            loss = distiller(x[at : at + BATCH].double(), y[at : at + BATCH], step / STEPS).total
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    want = json.loads(GOLDEN.read_text())[case]
    assert curve(case) == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_every_golden_curve_has_a_case_and_falls():
    curves = json.loads(GOLDEN.read_text())
    assert set(curves) == set(CASES)
    for case, values in curves.items():
        assert len(values) == STEPS
        assert sum(values[-5:]) < sum(values[:5]), case
    assert sum(curves["spike_count"][-5:]) < 0.75 * sum(curves["spike_count"][:5])


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = {case: values for case, values in json.loads(GOLDEN.read_text()).items() if case not in sys.argv}
    curves = {case: kept.get(case) or curve(case) for case in CASES}
    lines = [f"{json.dumps(case)}: {json.dumps(values)}" for case, values in curves.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
