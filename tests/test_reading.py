"""Text files of strangers: bombs, loops, depth and odd values end in one line that names file and place."""

import time
from pathlib import Path

import pytest

from spikedistill import recipe
from spikedistill.errors import SpikedistillError
from spikedistill.hardware import read_config, read_layers
from spikedistill.hardware.pricing import price_file
from spikedistill.overrides import apply_override
from spikedistill.reading import parse_json, parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi")
)
BAD = {
    "alias bomb": (BOMB, "more than 200,000 values"),
    "bomb of merges": (MERGES, "more than 200,000 values"),
    "self-alias": ("a: &a [*a]", "an alias of the value that it stands in"),
    "self-alias of a mapping": ("&a {b: {c: *a}}", "an alias of the value that it stands in"),
    "lists": ("[" * 100_000, "nested deeper than 40 levels"),
    "mappings": ("a: " + "{a: " * 5_000, "nested deeper than 40 levels"),
    "blocks": ("- " * 3_000, "nested deeper than 40 levels"),
    "date": ("a: 2020-13-45", "month must be in 1..12"),
    "a real date": ("a: 2020-10-05", "a value of type date; for a text put it in quotes"),
    "bytes": ("a: !!binary aGFsbG8=", "a value of type bytes"),
    "digits": (f"a: {'9' * 5_000}", "digits"),
    "hexadecimal": (f"a: 0x{'f' * 5_000}", "an integer of more than 64 bits"),
    "half a character": (r'a: "\ud800"', "surrogates not allowed"),
    "no character": (r'a: "\U00ffffff"', "chr"),
    "list as key": ("? [a]\n: 1", "while constructing a mapping"),
    "code": ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [recipe.read_yaml, read_layers, read_config])
def test_yaml_that_hangs_breaks_or_says_too_much(name, read, tmp_path):
    text, words = BAD[name]
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    start = time.monotonic()
    with pytest.raises(SpikedistillError, match=rf"mine\.yaml: not .*({words})") as raised:
        read(file)
    assert time.monotonic() - start < 5
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("read", [recipe.read_yaml, read_layers, read_config])
def test_files_that_are_no_text(read, tmp_path):
    file = tmp_path / "mine.yaml"
    for content, words in (
        (b"title: \xff\xfe", "no UTF-8 text"),
        ("title: héllo".encode("utf-16"), "no UTF-8 text"),
        (b"a: b\0c", "holds null bytes"),
        (b"a: " + b"b" * (3 << 20), "more than 2 MiB"),
    ):
        file.write_bytes(content)
        with pytest.raises(SpikedistillError, match=rf"mine\.yaml: {words}"):
            read(file)
    with pytest.raises(SpikedistillError, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(SpikedistillError, match="cannot be read"):
        read(tmp_path / "none.yaml")


def test_aliases_that_are_no_bombs_are_values_of_their_own():
    tree = parse_yaml("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: null}", "here")
    assert tree == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": {"b": [1, 2], "e": None}}
    assert tree["a"]["b"] is not tree["c"]["b"]
    assert parse_yaml("[0x10, 1.5, .inf, true, ~, text]", "here") == [
        16,
        1.5,
        float("inf"),
        True,
        None,
        "text",
    ]


@pytest.mark.parametrize(
    "text", ["title=[1", "title=&a [*a]", "title=2020-13-01", "title=*a", "seed=" + "[" * 200]
)
def test_overrides_that_are_no_yaml(text):
    with pytest.raises(SpikedistillError, match=r"override '(title|seed)") as raised:
        apply_override({}, text)
    assert "\n" not in str(raised.value)


def test_json_that_is_nested_too_deep():
    with pytest.raises(SpikedistillError, match=r"here: .*nested too deep"):
        parse_json("[" * 100_000, "here")
    with pytest.raises(SpikedistillError, match="here: not JSON"):
        parse_json("{", "here")


CONV = "layers: [{name: a, kind: conv, in_channels: 3, out_channels: 8, kernel_size: 3, in_size: 8, %s}]"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("padding: 1000003", "padding must be at most 4,096, found 1,000,003"),
        ("padding: -1", "padding must be at least 0"),
        ("in_size: 100000000", "in_size must be at most"),
        ("out_size: 100000000", "out_size must be at most"),
        ("time_steps: 10000000000", "time_steps must be at most"),
        ("executions: 0", "executions must be at least 1"),
        ("weight_bits: 100000", "weight_bits must be at most 64"),
        ("input: {kind: integers, max: -3}", "input_max must be at least 0"),
        ("groups: 300000, in_channels: 300000, out_channels: 300000", "300,000 groups, or blocks"),
        ("kernel_size: 30, padding: 0", "larger than its padded input"),
        ("kernel_size: [30, 30], padding: 4, dilation: 9", "larger than its padded input"),
        ("spikes_in: -5", "spikes_in must be at least 0"),
        ("spikes_in: .inf", "spikes_in: Input should be a finite number"),
        ("spikes_out: .nan", "spikes_out: Input should be a finite number"),
        ("nonzero_in: -.inf", "nonzero_in"),
        ("events: {block: 0, rows: [1], patches: {8: 1}, sites: 1}", "block must be from 1"),
        ("events: {block: 8, rows: [-1], patches: {8: 1}, sites: 1}", "must be at least 0"),
        ("events: {block: 8, rows: [.inf], patches: {8: 1}, sites: 1}", "finite"),
    ],
)
def test_numbers_of_layer_files_are_checked(key: str, words: str, tmp_path: Path):
    text = CONV % key
    if "kernel_size" in key:
        text = text.replace("kernel_size: 3, ", "", 1) + "\n"
    if "groups" in key:
        text = text.replace("in_channels: 3, out_channels: 8, ", "", 1)
    if "in_size" in key:
        text = text.replace("in_size: 8, ", "", 1)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SpikedistillError, match=words):
        price_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "layer",
    [
        "kind: conv, in_channels: 3, out_channels: 8, kernel_size: 3, in_size: 8, padding: 4096, "
        "dilation: 100",
        "kind: conv, in_channels: 131072, out_channels: 1, kernel_size: 4096, in_size: 1048576, padding: 0, "
        "input: real",
        "kind: conv, in_channels: 16384, out_channels: 16384, groups: 16384, kernel_size: 3, in_size: "
        "1048576",
        "kind: linear, in_channels: 131072, out_channels: 1048576, in_size: 1048576, time_steps: 1048576",
    ],
)
def test_the_largest_layers_are_priced_at_once(layer: str, tmp_path: Path):
    (tmp_path / "a.yaml").write_text("layers: [{name: a, " + layer + "}]")
    start = time.monotonic()
    assert price_file(tmp_path / "a.yaml")["energy_pj"] > 0
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "chip",
    ["clock_mhz: .inf", "clock_mhz: .nan", "crossbar_size: 100000000000", "technology: {adc_pj: -1}",
     "technology: {cycle_clocks: 0}", "technology: {adc_pj: .nan}"],
)  # fmt: skip
def test_chips_of_impossible_numbers(chip: str, tmp_path: Path):
    (tmp_path / "a.yaml").write_text("spikesim: {" + chip + "}")
    with pytest.raises(SpikedistillError, match=chip.split(":")[-2].strip(" {")):
        read_config(tmp_path / "a.yaml")
