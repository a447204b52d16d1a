"""Checkpoints: safetensors and JSON in a folder written aside, fsynced, then renamed. No pickle."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import finite
from ..errors import SpikedistillError
from ..files import recover, replace_folder

FORMAT = 1
STATE = "state.json"


def save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write ``tensors.safetensors`` and ``state.json`` (with both checksums); the old is :func:`previous`.

    A crash at any place leaves at least one whole checkpoint, where there was one.
    """
    from safetensors.torch import save as to_bytes

    # Bytes and not a file: the checksum is of what was meant, before any disk had it. Contiguous, because
    # safetensors takes nothing else and weights may lie channels last.
    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    document = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **state}
    replace_folder(
        folder,
        {
            "tensors.safetensors": data,
            STATE: sealed(document),
            **{k: v.encode() for k, v in (extra or {}).items()},
        },
        previous(folder),
    )


def previous(folder: Path) -> Path:
    """Where the checkpoint before the last one is kept (no stage's name has a dot)."""
    return folder.with_name(f"{folder.name}.previous")


def sealed(document: Mapping[str, Any]) -> bytes:
    """JSON with a checksum of its own, which :func:`read_json` looks at."""
    return json.dumps({**document, "checksum": _checksum(document)}, indent=1).encode()


def _checksum(document: Mapping[str, Any]) -> str:
    # As a reader will find it (tuples as lists, keys as text), so that written and read give one checksum.
    plain = json.loads(json.dumps({k: v for k, v in document.items() if k != "checksum"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def load_latest(
    folder: Path, note: Callable[[str], None] = lambda text: None, masks: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last checkpoint that is whole, or None where there is none; ``note`` hears if an older is taken.

    ``masks``: tensors that may hold infinity. Raises for the last one's damage where no older one is whole.
    """
    # First: a kill between two renames may have left the only whole one under another name.
    recover(folder, previous(folder))
    if not folder.exists():
        return None
    try:
        return load(folder, masks)
    except SpikedistillError as error:
        before = previous(folder)
        if not before.exists():
            raise
        try:
            found = load(before, masks)
        except SpikedistillError:
            raise error from None
        # The damaged one goes first: the next save must not push the whole one out.
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(before, folder)
        note(
            f"{error}; going on from the checkpoint before it, "
            f"of step {found[1].get('position', {}).get('step')}"
        )
        return found


def load(folder: Path, masks: Collection[str] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state; raises for a damaged or foreign folder, and for tensors that hold NaN.

    Infinity is refused too, but in ``masks``.
    """
    state = read_json(folder / STATE)
    if state.get("format") != FORMAT:
        raise SpikedistillError(
            f"{folder}: checkpoint format {state.get('format')!r}, this version reads {FORMAT}"
        )
    tensors = read_tensors(folder / "tensors.safetensors", state.get("sha256"))
    wrong = finite.faulty(tensors.items(), masks)
    if wrong:
        raise SpikedistillError(
            f"{folder / 'tensors.safetensors'}: {wrong[0]} holds NaN or infinity ({len(wrong)} tensors do); "
            "use an older checkpoint or repeat the run"
        )
    return tensors, state


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, held against its checksum where it has one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpikedistillError(f"{path} is missing; the folder is no (whole) checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpikedistillError(
            f"{path} is damaged ({error}); use an older checkpoint or repeat the run"
        ) from None
    if not isinstance(value, dict):
        raise SpikedistillError(f"{path}: expected a JSON object, found {type(value).__name__}")
    if "checksum" in value and value["checksum"] != _checksum(value):
        raise SpikedistillError(
            f"{path} is damaged: it is not what was written (its checksum differs); use an older checkpoint "
            "or repeat the run"
        )
    return value


def read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose checksum is known."""
    from safetensors.torch import load as from_bytes

    try:
        # Read once: what is parsed below is what was hashed, whatever happens to the file meanwhile.
        data = path.read_bytes()
    except FileNotFoundError:
        raise SpikedistillError(f"{path} is missing; the folder is no (whole) checkpoint") from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise SpikedistillError(
            f"{path} is damaged: sha256 {found[:12]}..., {str(sha256)[:12]}... was written; "
            "use an older checkpoint or repeat the run"
        )
    try:
        return from_bytes(data)
    except Exception as error:
        raise SpikedistillError(f"{path} is not a safetensors file ({error})") from None


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str, advice: str) -> None:
    """Load a module's state; raises, with ``where`` and ``advice``, for names or shapes that do not fit."""
    # strict=False for the error alone: torch would raise with a page of keys.
    try:
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    except RuntimeError:  # for shapes, strict or not
        own = module.state_dict()
        other = [k for k, v in own.items() if k in tensors and tensors[k].shape != v.shape]
        if not other:
            raise
        k, more = other[0], f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise SpikedistillError(
            f"{where}: the weights do not fit the network: {k} has shape {tuple(tensors[k].shape)}, the "
            f"network's is {tuple(own[k].shape)}{more}; {advice}"
        ) from None
    wrong = [*missing, *unexpected]
    if wrong:
        raise SpikedistillError(f"{where}: the weights do not fit the network: {', '.join(wrong[:4])} ...")
