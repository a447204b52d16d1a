"""What ``spikedistill export`` does: a stage's network as a file for other tools."""

from pathlib import Path

from .. import export as formats
from ..errors import SpikedistillError
from ..files import destination, exported
from ..quantization import to_integer
from ..training.reevaluate import open_run, open_stage


def export_command(
    run: str, to: str, out: Path, allow_lossy: bool, weight_bits: int | None, per_step: bool
) -> None:
    """Write the file and say its size; refuse options that belong to another format."""
    if to not in ("nir", "onnx", "integer", "c"):
        raise SpikedistillError(f"--to is nir, onnx, integer or c; found {to!r}")
    given = {
        "--allow-lossy": ("nir", allow_lossy),
        "--weight-bits": ("nir", weight_bits),
        "--per-step": ("onnx", per_step),
    }
    for option, (of, value) in given.items():
        if value and to != of:
            raise SpikedistillError(f"{option} belongs to --to {of}; found --to {to}")
    # Looked at before network and data are read; to_c does it itself, as it also takes a folder.
    if to != "c":
        destination(out)
    files = [out]
    if to in ("nir", "onnx"):
        place, _, data, network = open_run(run)
        x, _ = next(iter(data.batches("test", 16)))
        if to == "nir":
            formats.to_nir(network, out, x, allow_lossy=allow_lossy, weight_bits=weight_bits)
        else:
            formats.to_onnx(network, out, x, per_step=per_step)
    else:  # what these hold does not depend on data
        place, _, network = open_stage(run)
        if to == "c":
            files = formats.to_c(network, out)
        else:
            with exported(out) as temporary:
                to_integer(network).save(temporary)
    for file in files:
        print(f"{file}: stage {place.name}, {file.stat().st_size:,} bytes")
