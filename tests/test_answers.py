"""What a frozen teacher gave is kept by the content of its inputs."""

import pytest
import torch

import spikedistill as sd
from spikedistill import taps
from spikedistill.answers import Answers
from spikedistill.taps import Captures


def teacher(calls: list[int], random: bool = False):
    torch.manual_seed(0)
    network = sd.networks.create("vgg5", num_classes=3, width=0.25, pools=1, time_steps=None).eval()
    network = network.to(memory_format=torch.channels_last)

    def answer(x: torch.Tensor):
        calls.append(len(x))
        if random:
            torch.rand(1)
        with torch.no_grad():
            return taps.captures(network, x, ["stage1", "before_head"])

    return answer


def batches(n: int = 4):
    torch.manual_seed(1)
    x = torch.rand(32, 3, 16, 16)
    orders = [torch.randperm(32, generator=torch.Generator().manual_seed(e)) for e in range(n)]
    return [x[i].contiguous(memory_format=torch.channels_last) for order in orders for i in order.split(8)]


def test_a_second_epoch_asks_nothing_and_is_equal() -> None:
    calls: list[int] = []
    answer, kept = teacher(calls), Answers(32)
    for k, x in enumerate(batches()):
        logits, captures = kept(x, lambda x=x: answer(x))
        assert len(calls) == min(k + 1, 4)
        plain, theirs = teacher([])(x)
        torch.testing.assert_close(logits, plain)
        assert captures.names == theirs.names
        for name, value in theirs.tensors.items():
            torch.testing.assert_close(captures.tensors[name], value)
            assert captures.tensors[name].stride() == value.stride()


def test_an_input_that_differs_anywhere_is_asked() -> None:
    calls: list[int] = []
    answer, kept = teacher(calls), Answers(32)
    x = batches()[0]
    kept(x, lambda: answer(x))
    y = x.clone()
    y[3, 1, 2, 2] += 1e-6
    logits, _ = kept(y, lambda: answer(y))
    assert len(calls) == 2
    assert torch.equal(logits, teacher([])(y)[0])


@pytest.mark.parametrize("why", ["random", "augmented", "large"])
def test_it_gives_up(why: str) -> None:
    calls: list[int] = []
    answer, kept = teacher(calls, random=why == "random"), Answers(32, 100 if why == "large" else 1 << 20)
    for x in batches():
        x = x + torch.rand(1) if why == "augmented" else x
        kept(x, lambda x=x: answer(x))
    assert len(calls) == 16
    assert not kept.on


def test_captures_that_are_not_of_samples_are_not_kept() -> None:
    kept = Answers(32)
    x = torch.rand(8, 3)
    kept(x, lambda: (torch.rand(1, 8, 3).detach(), Captures({"a": torch.zeros(4, 5)})))
    assert not kept.on


@pytest.mark.parametrize("augmented", [False, True])
def test_a_run_asks_each_input_once(augmented: bool, tmp_path, monkeypatch) -> None:
    vgg5 = {"name": "vgg5", "pools": 1}
    recipe = {
        "data": {"name": "digits", "batch_size": 64, "augment": {"crop": 1} if augmented else {}},
        "precision": "float32",
        "time_steps": 2,
        "compile": False,
        "optimizer": {"name": "sgd", "lr": 0.05},
        "stages": [
            {"name": "teacher", "network": {**vgg5, "ann": True, "width": 0.25}, "epochs": 1},
            {
                "name": "student",
                "network": {**vgg5, "width": 0.125, "neuron": {"type": "lif"}},
                "teacher": "teacher",
                "keep_answers": True,
                "epochs": 3,
                "objectives": [
                    {"type": "cross_entropy"},
                    {"type": "logit_distillation", "temperature": 2.0},
                    {"type": "blurred_feature", "weight": 0.002, "blur_ratio": 0.15, "tap": "before_head"},
                ],
            },
        ],
    }
    kept: list[int] = []
    again = Answers._again
    monkeypatch.setattr(Answers, "_again", lambda self, rows: kept.append(len(rows)) or again(self, rows))
    first = sd.train(recipe, out=tmp_path / "kept")
    # Each epoch leaves other 28 of the 540 out: a batch that has one of these is asked in the next.
    assert (not kept) if augmented else len(kept) > 5
    assert ("keep_answers" in (tmp_path / "kept" / "metrics.jsonl").read_text()) == augmented
    recipe["stages"][1]["keep_answers"] = False
    second = sd.train(recipe, out=tmp_path / "asked")
    weights = [run.network("student").state_dict() for run in (first, second)]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-4)
