"""A converted network with max-pooling in onnxruntime: what its pools remember is state like a membrane."""

import json

import numpy as np
import pytest
import torch

import spikedistill as sd
from spikedistill import networks


def test_step_by_step_it_gives_the_same_logits(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    x = torch.rand(3, 3, 8, 8)
    ann = networks.create("vgg5", time_steps=None, width=0.125, pooling="max", num_classes=4).eval()
    snn = sd.convert(ann, x, time_steps=4)
    sd.export.to_onnx(snn, tmp_path / "step.onnx", example=x, per_step=True, spikes=True)
    session = runtime.InferenceSession(str(tmp_path / "step.onnx"))
    states = json.loads(session.get_modelmeta().custom_metadata_map["spikedistill"])["states"]
    assert sum(".neuron" not in key and "stage2.0" in key for key in states) == 1
    held = {k: np.full((3, *v["shape"]), v["initial"], np.float32) for k, v in states.items()}
    names, logits = [o.name for o in session.get_outputs()], []
    for _ in range(4):
        out = dict(zip(names, session.run(None, {"input": x.numpy(), **held})))
        logits.append(torch.from_numpy(out["logits"]))
        held = dict(zip(held, [out[n] for n in names[1 : 1 + len(held)]]))
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(logits), snn(x), rtol=0, atol=1e-5)


def test_neurons_that_count_steps_are_refused_step_by_step(tmp_path):
    x = torch.rand(3, 3, 8, 8)
    ann = networks.create("vgg5", time_steps=None, width=0.125, neuron={"type": "qcfs"}, num_classes=4).eval()
    snn = sd.convert(ann, x, time_steps=2, method="signed")
    with pytest.raises(sd.SpikedistillError, match="the step's number"):
        sd.export.to_onnx(snn, tmp_path / "step.onnx", example=x, per_step=True)
    assert not list(tmp_path.iterdir())
