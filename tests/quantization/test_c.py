"""C files of integer networks give the same integers, under strict warnings and sanitizers."""

import copy
import re
import shutil
import subprocess

import pytest
import torch
from c_program import CLANG, PLAIN, assert_same, entering, logits, program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lively import events, images, lively, trained
from test_wider import Between, Dense, Residual, Shuffle, turned
from torch import Tensor, nn
from torch.nn import functional as F

import spikedistill as sd
from spikedistill.errors import SpikedistillError
from spikedistill.export import to_c
from spikedistill.neurons.compilation import eager
from spikedistill.quantization import IntegerNetwork, quantize, to_integer


@pytest.fixture(autouse=True)
def _uncompiled():
    with eager():
        yield


def integer(name: str, x: Tensor, network: dict, **options: object) -> IntegerNetwork:
    return to_integer(quantize(lively(name, x, **network), calibration=x, **options))


slow = pytest.mark.slow
FAMILIES = [
    ("vgg5", {"width": 0.125, "hidden": 64}),
    pytest.param("vgg9", {"width": 0.1, "pools": 2, "pooling": "avg"}, marks=slow),
    ("vgg5", {"width": 0.125, "head": "spiking"}),
    ("resnet20", {"width": 0.5}),
    pytest.param("resnet18", {"width": 0.05}, marks=slow),
    pytest.param("sew_resnet20", {"width": 0.5}, marks=slow),
    ("sew_resnet20", {"width": 0.25, "connect": "iand"}),
    pytest.param("ms_resnet20", {"width": 0.5}, marks=slow),
    ("ms_resnet20", {"width": 0.25, "shortcut": "pad"}),
    pytest.param("spikformer_2_384", {"width": 0.25, "time_steps": 2}, marks=slow),
    ("spikingformer_2_384", {"width": 0.25, "time_steps": 2}),
]


@pytest.mark.parametrize(("name", "network"), FAMILIES, ids=str)
def test_families_on_images(name, network, tmp_path):
    x = images(4, size=16 if "former" in name else 8)
    assert_same(integer(name, x, network), x, tmp_path / "c")


@pytest.mark.parametrize(
    "name",
    ["vgg5", pytest.param("resnet20", marks=slow), "sew_resnet20", pytest.param("ms_resnet20", marks=slow)],
)
def test_frames(name, tmp_path):
    x = events(steps=8)  # two frames a step
    net = integer(
        name, x, {"width": 0.25, "in_channels": 2, "input": "frames", "time_steps": 4}, input_bits=3
    )
    assert_same(net, 3 * x, tmp_path / "c")  # beyond the limit of three bits, so that counts are clipped


def test_event_network_of_dvs_gesture(tmp_path):
    x = events(4, 4, 2, 16)
    network = sd.networks.create("dvs_gesture_cnn", num_classes=5, image_size=16, time_steps=4)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.uniform_(layer.weight, -0.4, 0.6)
    assert_same(to_integer(quantize(network, membrane_bits=6, calibration=[x])), x, tmp_path / "c")


@pytest.mark.parametrize(
    "neuron",
    [
        {"type": "if", "reset": "soft"},
        {"type": "if", "reset": None},
        {"type": "lif", "tau": 1.7, "initial": 0.3},
        {"type": "lif", "decay": 0.93, "threshold": 0.7, "reset": "soft"},
        {"type": "lif", "decay": 0.9, "reset": "soft", "reset_by": 1.4},
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"membrane_bits": None}, {"scheme": "mint"}], ids=str)
def test_neurons(neuron, options, tmp_path):
    x = images(4)
    assert_same(integer("vgg5", x, {"width": 0.125, "neuron": neuron}, **options), x, tmp_path / "c", *PLAIN)


@pytest.mark.parametrize("bits", [2, 3, 5, *(pytest.param(b, marks=slow) for b in (6, 7, 8))])
def test_packed_widths(bits, tmp_path):
    x = images(4)
    net = integer(
        "resnet20", x, {"width": 0.25}, weight_bits=bits, first_last_bits=bits, norm_bits=max(bits, 4)
    )
    assert_same(net, x, tmp_path / "c", *PLAIN)
    text = (tmp_path / "c" / "network.c").read_text()
    held = sum(len(body.split(",")) - 1 for body in re.findall(r"weights_\d+\[\] = \{(.*?)\}", text, re.S))
    assert held == sum(t.numel() for name, t in net.tensors.items() if name.endswith(".weight"))


def test_64_bits_where_numbers_ask_for_them(tmp_path):
    x = images(4)
    net = integer("ms_resnet20", x, {"width": 0.25}, fraction_bits=16, residual_bits=24, weight_bits=8)
    assert_same(net, x, tmp_path / "c")
    assert "int64_t right_64" in (tmp_path / "c" / "network.c").read_text()


@pytest.mark.parametrize("form", [Residual, Dense, Shuffle])
def test_turned_networks(form, tmp_path):
    x = images(4, size=18 if form is Shuffle else 16)
    net = to_integer(quantize(turned(form(), x, mean=0.45, std=0.22), calibration=x))
    assert_same(net, x, tmp_path / "c")


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(8, 8, 3, 2, 3, dilation=3), nn.Conv2d(8, 8, (1, 5), (2, 1), (0, 4), dilation=(5, 2),
        groups=8),
        nn.Conv2d(8, 8, (3, 2), (1, 2), (2, 1), groups=2), nn.MaxPool2d(3, 1, 1, dilation=2),
        nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(3),
        nn.AdaptiveAvgPool2d((4, 2)),
        nn.AdaptiveAvgPool2d(16),
    ],
    ids=repr,
)  # fmt: skip
def test_layers_and_pools(module, tmp_path):
    x = images(4)
    assert_same(to_integer(quantize(turned(Between(module), x), calibration=x)), x, tmp_path / "c")


class Cuts(nn.Module):
    """1-D convolutions, slices with steps, products and complements of spikes, padding and cropping."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv, self.norm1, self.fc = (
            nn.Conv1d(8, 8, 3, 2, 4, dilation=4, bias=False),
            nn.BatchNorm1d(8),
            nn.Linear(40, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x[:, :, 1:7:2] * (1 - x[:, :, ::3])
        x = F.pad(x, (2, -1, -1, 1)).permute(0, 1, 3, 2)
        x = F.relu(self.norm1(self.conv(x.mean(3))))
        return self.fc(x.flatten(1))


def test_cuts_products_and_sequences(tmp_path):
    x = images(4)
    net = to_integer(quantize(turned(Cuts(), x), calibration=x))
    assert {"mul", "affine", "slice", "pad", "permute", "sum"} <= {op["op"] for op in net.header["ops"]}
    assert_same(net, x, tmp_path / "c")


def test_encoded_images_enter_as_spikes(tmp_path):
    x = images(4)
    net = integer("vgg5", x, {"width": 0.125, "encoding": "latency"})
    spikes = torch.rand(4, 4, 3, 8, 8).gt(0.5).float()
    assert torch.equal(logits(program(net, tmp_path / "c"), entering(net, spikes)), net(spikes))


@pytest.mark.skipif(CLANG is None, reason="no clang; pip install ziglang has one")
@pytest.mark.parametrize(
    "name", ["vgg5", pytest.param("ms_resnet20", marks=slow), pytest.param("sew_resnet20", marks=slow)]
)
def test_clang_builds_the_same(name, tmp_path):
    x = images(4)
    assert_same(integer(name, x, {"width": 0.25}), x, tmp_path / "c", *PLAIN, compiler=CLANG)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_random_networks(tmp_path_factory, data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**31)))
    bits, frames = st.integers(2, 8), draw(st.booleans())
    network = {
        "width": 0.2,
        "time_steps": draw(st.integers(1, 5)),
        "num_classes": draw(st.integers(2, 7)),
        "neuron": {
            "type": "lif",
            "decay": draw(st.floats(0, 1)),
            "threshold": draw(st.floats(0.2, 2)),
            "gain": draw(st.floats(0.3, 1)),
            "reset": draw(st.sampled_from(["hard", "soft", None])),
            "initial": draw(st.floats(-0.5, 0.5)),
        },
    } | ({"input": "frames", "in_channels": 2} if frames else {"mean": 0.3, "std": draw(st.floats(0.2, 1))})
    options = {
        "weight_bits": draw(bits), "membrane_bits": draw(st.one_of(st.none(), bits)), "norm_bits": draw(bits),
        "leak_bits": draw(bits), "fraction_bits": draw(st.integers(2, 12)),
        "residual_bits": draw(st.integers(6, 20)),
        "input_bits": draw(bits), "first_last_bits": draw(st.one_of(st.none(), bits)),
    }  # fmt: skip
    name = draw(st.sampled_from(["vgg5", "resnet20", "sew_resnet20", "ms_resnet20"]))
    x = events(3, network["time_steps"]) if frames else images(3)
    assert_same(integer(name, x, network, **options), x, tmp_path_factory.mktemp("c"))


@pytest.mark.parametrize(
    "name",
    ["vgg5", pytest.param("resnet20", marks=slow), "sew_resnet20", pytest.param("ms_resnet20", marks=slow)],
)
def test_whole_digits_test_set(name, tmp_path):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    network = lively(name, x[:256], in_channels=1, width=0.125 if name == "vgg5" else 0.25, time_steps=2)
    net = to_integer(quantize(trained(network, x, y), calibration=x[:128]))
    assert_same(net, x[1000:], tmp_path / "c")
    assert len(net(x[1000:]).unique(dim=0)) > 400


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    ["vgg9", *(pytest.param(name, marks=slow) for name in ("resnet18", "sew_resnet18", "ms_resnet18"))],
)
def test_cifar10_samples(cifar10_test, name, tmp_path):
    x = cifar10_test[0][:32]
    options = {"width": 0.1} | ({} if name == "vgg9" else {"stem": "cifar"})
    assert_same(integer(name, x, options), x, tmp_path / "c", *PLAIN)


@pytest.fixture(scope="module")
def small() -> IntegerNetwork:
    with eager():
        torch.manual_seed(0)
        return integer("vgg5", images(2), {"width": 0.0625, "time_steps": 2})


def test_numbers_beyond_64_bits_are_refused_by_name(small, tmp_path):
    header = copy.deepcopy(small.header)
    header["ops"][2] |= {"leak": [1 << 61, 0], "wide": True}
    with pytest.raises(
        SpikedistillError, match=r"to_c: ops\.2 \(norm_neuron\), stage1\.1: .* do not fit 64 bits"
    ):
        to_c(IntegerNetwork(header, small.tensors), tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_neurons_without_a_form_are_refused_by_name(tmp_path):
    x = images(4)
    net = integer("vgg5", x, {"width": 0.125, "neuron": {"type": "sliding_psn", "order": 2}})
    with pytest.raises(SpikedistillError, match=r"ops\.2 \(norm_parallel\), stage1\.1: has no form in C"):
        to_c(net, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_forged_networks_are_refused_before_anything_is_written(small, tmp_path):
    header = copy.deepcopy(small.header)
    header["ops"][1]["padding"] = [99, 0]
    with pytest.raises(SpikedistillError, match="larger than the kernel's extent"):
        to_c(IntegerNetwork(header, small.tensors), tmp_path / "c")
    for path, words in (("no/c", "there is no folder"), ("a-b.c", "no name in C")):
        with pytest.raises(SpikedistillError, match=words):
            to_c(small, tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_the_file_pair_under_its_own_name_needs_no_library(small, tmp_path):
    assert [f.name for f in to_c(small, tmp_path / "gesture.c")] == ["gesture.h", "gesture.c"]
    source = (tmp_path / "gesture.c").read_text()
    assert re.findall("#include.*", source) == ['#include "gesture.h"']
    assert re.findall("#include.*", (tmp_path / "gesture.h").read_text()) == ["#include <stdint.h>"]
    assert not re.search(r"\b(malloc|float|double|memcpy)\b", source)
    if shutil.which("gcc"):
        subprocess.run(
            ["gcc", "-std=c99", "-ffreestanding", "-c", tmp_path / "gesture.c", "-o", tmp_path / "o"],
            check=True,
        )


def test_the_stated_memory_is_the_whole(small, tmp_path):
    if shutil.which("gcc") is None or shutil.which("size") is None:
        pytest.skip("no gcc or size")
    to_c(small, tmp_path / "own.c")
    subprocess.run(["gcc", "-std=c99", "-O1", "-c", tmp_path / "own.c", "-o", tmp_path / "o"], check=True)
    sections = subprocess.run(
        ["size", "-A", tmp_path / "o"], capture_output=True, text=True, check=True
    ).stdout
    held = sum(int(n) for n in re.findall(r"^\.(?:bss|data)\s+(\d+)", sections, re.M))
    stated = int(re.search(r"OWN_MEMORY (\d+)", (tmp_path / "own.h").read_text())[1])
    assert stated <= held < stated + 256  # arrays are aligned


def test_the_program_refuses_what_it_cannot_run(small, tmp_path):
    built, sample = program(small, tmp_path / "c"), entering(small, images(2)).tobytes()

    def end(given: bytes, *arguments: str) -> tuple[int, str, int]:
        done = subprocess.run([built, *arguments], input=given, capture_output=True)
        return done.returncode, done.stderr.decode(), len(done.stdout.splitlines())

    assert end(sample) == end(sample, "2") == (0, "", 2)
    for wrong in ("abc", "-1", "0", "3", "2x", "", "99999999999999999999"):
        said = f"give the time steps, 1 to 2, or nothing; found '{wrong}'\n"
        assert end(sample, wrong) == (2, said, 0)
    assert end(sample, "2", "2")[0] == 2
    one = len(sample) // 2
    said = f"the input ends after 1 whole sample with {one - 1} of {one} bytes of another\n"
    assert end(sample[:-1]) == (1, said, 1)
    said = f"the input ends after 0 whole samples with 5 of {one} bytes of another\n"
    assert end(sample[:5]) == (1, said, 0)


def test_the_header_serves_c_plus_plus(small, tmp_path):
    if shutil.which("gcc") is None or shutil.which("g++") is None:
        pytest.skip("no gcc or g++")
    to_c(small, tmp_path / "own.c")
    (tmp_path / "use.cc").write_text(
        '#include "own.h"\nstatic uint8_t image[OWN_INPUTS];\nstatic own_logit logits[OWN_LOGITS];\n'
        "int main() { own_run(image, OWN_TIME_STEPS, logits); return 0; }\n"
    )
    subprocess.run(["gcc", "-std=c99", "-c", tmp_path / "own.c", "-o", tmp_path / "own.o"], check=True)
    done = subprocess.run(
        ["g++", "-Wall", "-Werror", tmp_path / "use.cc", tmp_path / "own.o", "-o", tmp_path / "use"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "use"]).returncode == 0
