"""The public names of the design, frozen; grow them with care."""

import inspect
import subprocess
import sys

import spikedistill as sd

NAMES = {
    "IF", "LIF", "PLIF", "NormNeuron", "Repeat", "Distiller", "Losses", "SpikedistillError", "networks",
    "objectives",
    "spiking", "foreign", "time_steps", "eager", "train", "Run", "load", "citations", "quantize",
    "to_integer",
    "IntegerNetwork", "convert", "hardware", "export", "data",
}  # fmt: skip
OBJECTIVES = {
    "CrossEntropy", "TemporalEfficientTraining", "LogitDistillation", "WeightedSoftLabels",
    "FullRangeDistillation",
    "EntropyRegularization", "AttentionTransfer", "BlurredFeature", "FeatureDistillation",
    "MembraneDistillation",
    "TemporalSelfDistillation", "SpatialSelfDistillation", "StrongWeakDistillation", "ActivityRegularization",
    "LogitsRegularization", "EnergyRegularization", "SpikeCount",
}  # fmt: skip


def parameters(target) -> list[str]:
    return [p for p in inspect.signature(target).parameters if p != "self"]


def test_names():
    assert set(sd.__all__) >= NAMES
    assert all(getattr(sd, name) is not None for name in NAMES)
    assert set(dir(sd.objectives)) >= OBJECTIVES


def test_signatures():
    neuron = [
        "threshold",
        "reset",
        "surrogate",
        "time_steps",
        "initial",
        "detach_reset",
        "encode",
        "smooth",
        "reset_by",
    ]
    assert parameters(sd.LIF) == ["tau", "decay", "gain", *neuron]
    assert parameters(sd.IF) == neuron
    assert parameters(sd.PLIF) == ["init_tau", *neuron, "gain"]
    assert parameters(sd.NormNeuron)[:4] == ["channels", "neuron", "eps", "momentum"]
    assert parameters(sd.Distiller) == [
        "student",
        "teacher",
        "objectives",
        "teacher_weights",
        "teacher_heads",
        "backpropagation",
    ]
    assert parameters(sd.train)[:3] == ["recipe", "networks", "data"]
    assert parameters(sd.load) == ["folder", "stage", "network", "best"]
    assert parameters(sd.spiking)[:4] == ["model", "time_steps", "neuron", "example"]
    assert parameters(sd.convert)[:4] == ["ann", "calibration", "time_steps", "method"]
    assert set(parameters(sd.quantize)) >= {
        "network", "weight_bits", "membrane_bits", "norm_bits", "leak_bits", "fraction_bits", "residual_bits",
        "input_bits", "first_last_bits", "weight_scale", "unit", "scheme", "calibration",
    }  # fmt: skip
    assert parameters(sd.export.to_nir)[:4] == ["network", "path", "example", "allow_lossy"]
    assert parameters(sd.export.to_onnx)[:3] == ["network", "path", "example"]
    assert parameters(sd.export.to_c) == ["network", "path"]


def test_importing_brings_nothing_heavy():
    code = (
        "import sys, spikedistill; "
        "print([m for m in ('timm', 'matplotlib', 'sklearn', 'torchvision', 'accelerate', 'nir', "
        "'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
