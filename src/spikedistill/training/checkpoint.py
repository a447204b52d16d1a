"""Checkpoints: safetensors and JSON in a folder that is written aside, fsynced, then renamed. No pickle anywhere."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SpikedistillError

FORMAT = 1
STATE = "state.json"


def save(
    folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], extra: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors.safetensors`` and ``state.json`` (with the tensors' checksum) so that a crash leaves old or new."""
    from safetensors.torch import save as to_bytes

    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    document = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **state}
    replace_folder(
        folder,
        {
            "tensors.safetensors": data,
            STATE: json.dumps(document, indent=1).encode(),
            **{k: v.encode() for k, v in (extra or {}).items()},
        },
    )


def replace_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """A folder with these files, in place of any old one, at once; a full disk or a kill leaves the old one whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        aside.mkdir()
        for name, data in contents.items():
            with open(aside / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            os.rename(folder, old)
        os.rename(aside, folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise SpikedistillError(
            f"cannot write {folder}: {error.strerror or error}; what was there before is unchanged. Free space or choose "
            "another --out, then resume"
        ) from None
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put back a folder that a kill left renamed, and remove halves that a kill left aside."""
    if not folder.parent.is_dir():
        return
    for old in sorted(folder.parent.glob(f".{folder.name}.old-*")):
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, folder)
    for aside in folder.parent.glob(f".{folder.name}.new-*"):
        shutil.rmtree(aside, ignore_errors=True)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state; raises for a damaged or foreign folder."""
    state = read_json(folder / STATE)
    if state.get("format") != FORMAT:
        raise SpikedistillError(f"{folder}: checkpoint format {state.get('format')!r}, this version reads {FORMAT}")
    return read_tensors(folder / "tensors.safetensors", state.get("sha256")), state


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpikedistillError(f"{path} is missing; the folder is no (whole) checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpikedistillError(f"{path} is damaged ({error}); use an older checkpoint or repeat the run") from None
    if not isinstance(value, dict):
        raise SpikedistillError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose checksum is known."""
    from safetensors.torch import load as from_bytes

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SpikedistillError(f"{path} is missing; the folder is no (whole) checkpoint") from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise SpikedistillError(
            f"{path} is damaged: sha256 {found[:12]}..., {sha256[:12]}... was written; use an older checkpoint or repeat the run"
        )
    try:
        return from_bytes(data)
    except Exception as error:
        raise SpikedistillError(f"{path} is not a safetensors file ({error})") from None
