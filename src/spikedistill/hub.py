"""Networks on the Hugging Face hub: fetched and uploaded as the folders that :mod:`.training.store` writes.

Only files of a network's folder are fetched, by name: weights (safetensors) and JSON, which our reader holds
against their checksums. No code is fetched, and none is run. The endpoint is ``HF_ENDPOINT``; the token
``HF_TOKEN``, or that of ``hf auth login``.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from .errors import SpikedistillError
from .files import replace_folder

FILES = (
    "config.json", "model.safetensors", "best.safetensors", "graph.json", "summary.json", "README.md",
)  # fmt: skip
SUMS = {
    "model.safetensors": "sha256",
    "best.safetensors": "best_sha256",
    "graph.json": "graph_sha256",
}  # in config.json
_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_HUB = re.compile(
    rf"(?:hf:/{{1,2}})?(?P<name>{_NAME})(?:@(?P<revision>[\w./-]+))?"
)  # a Path has lost one of the slashes
INSTALL = "pip install 'spikedistill[hub]'"

_HTTP = ("httpx", "httpx2", "httpcore", "requests", "urllib3")


@dataclass(frozen=True)
class Repository:
    """A model repository of the hub, at a branch, tag or commit (None: its main branch)."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")


Place = Repository | Path


def is_remote(text: Any) -> bool:
    """Whether a text names a network elsewhere: ``hf://owner/name`` or ``file://FOLDER``."""
    # One slash is enough: a Path has lost the other.
    return isinstance(text, str | os.PathLike) and bool(re.match(r"(hf|file):/", str(text)))


def place(text: str) -> Place:
    """What ``owner/name``, ``hf://owner/name[@revision]``, ``file://FOLDER`` or a folder names.

    A folder is ``./FOLDER`` or ``/FOLDER``.
    """
    if text.startswith("file:/"):
        return Path(unquote(urlparse(text).path))
    if text.startswith((".", "/", "~")):
        return Path(text).expanduser()
    found = _HUB.fullmatch(text)
    if found is None:
        raise SpikedistillError(
            f"{text!r} names no place: give owner/name (a repository of the hub), file://FOLDER or ./FOLDER"
        )
    return Repository(found["name"], found["revision"])


def fetch(text: str) -> Path:
    """The folder of a network elsewhere, from the hub's cache where nothing has changed.

    Raises: SpikedistillError where the hub cannot be reached (and nothing is cached), or the repository holds
    no network.
    """
    found = place(text)
    if isinstance(found, Repository):
        hub = _library(found)
        with _errors(found, "fetched"):
            endpoint = os.environ.get("HF_ENDPOINT")
            folder = Path(
                hub.snapshot_download(
                    found.name, revision=found.revision, allow_patterns=list(FILES), endpoint=endpoint
                )
            )
    else:
        folder = found
    if not (folder / "config.json").is_file():
        raise SpikedistillError(f"{found} holds no network of spikedistill: there is no config.json")
    return folder


def upload(contents: Mapping[str, bytes], text: str, private: bool = False) -> str:
    """Put a network's files at a place; one that the hub does not have yet is made. Returns its address."""
    found = place(text)
    if isinstance(found, Path):
        _may_replace(found)
        replace_folder(found, contents)
        return str(found)
    if found.revision is not None:
        raise SpikedistillError(f"{found}: a push goes to the main branch; leave out @{found.revision}")
    hub = _library(found)
    with _errors(found, "written"):
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        # None where nothing was asked: the default of the owner holds, which False would overrule.
        api.create_repo(found.name, private=private or None, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, data) for name, data in contents.items()]
        api.create_commit(found.name, operations, commit_message="Network by spikedistill")
    return str(found)


def pull(text: str, out: Path | None = None) -> Path:
    """Copy a network from elsewhere to a folder (default: its name), whole, by checksums, or not at all."""
    from .training.checkpoint import read_json

    source, found = fetch(text), place(text)
    folder = out or Path(found.name.rpartition("/")[2] if isinstance(found, Repository) else found.name)
    if folder.exists() and folder.resolve() == source.resolve():
        raise SpikedistillError(f"{folder} is the network itself; give another folder: --out FOLDER")
    _may_replace(folder)
    config = read_json(source / "config.json")
    # Read once: the bytes that are held against the checksums are those that are written.
    contents = contents_of(source)
    for name, key in SUMS.items():
        if key in config and hashlib.sha256(contents.get(name, b"")).hexdigest() != config[key]:
            raise SpikedistillError(
                f"{found}: {name} is damaged, or missing: its checksum differs; nothing was written"
            )
    replace_folder(folder, contents)
    return folder


def contents_of(folder: Path) -> dict[str, bytes]:
    """The files of a network's folder."""
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def _may_replace(folder: Path) -> None:
    """A folder with anything but a network in it is left alone."""
    if not folder.exists():
        return
    if not folder.is_dir() or not {p.name for p in folder.iterdir()} <= {*FILES}:
        raise SpikedistillError(
            f"{folder} exists and holds other things than a network; choose another folder"
        )


def _library(found: Repository) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise SpikedistillError(f"{found}: the hub needs huggingface_hub: {INSTALL}") from None
    return huggingface_hub


@contextmanager
def _errors(found: Repository, done: str) -> Iterator[None]:
    """The library's many exceptions as one message."""
    from huggingface_hub import errors

    where = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    offline = (
        f"{found} cannot be {done}: the hub at {where} cannot be reached ({{}}); connect (HF_ENDPOINT names "
        "another hub, HF_HUB_OFFLINE=1 must not be set), or use a folder: file://FOLDER"
    )
    try:
        yield
    except SpikedistillError:
        raise
    # The special ones first: a gated repository is a kind of one not found, and both are HTTP errors.
    except errors.GatedRepoError:
        raise SpikedistillError(
            f"{found} cannot be {done}: its owner has to give you access; ask on its page, then set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise SpikedistillError(f"{found} cannot be {done}: it has no revision {found.revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise SpikedistillError(
            f"{found} cannot be {done}: {where} has no such repository, or it is private: look at its name, "
            "and set HF_TOKEN"
        ) from None
    # In some versions one not found here is an HTTP error too.
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        # The cause names the connection that failed; the error itself only says that nothing is cached.
        raise SpikedistillError(offline.format(_first(error.__cause__ or error))) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        token = "; set HF_TOKEN to a token that may write there" if status in (401, 403) else ""
        raise SpikedistillError(f"{found} cannot be {done}: {_first(error)}{token}") from None
    except errors.HFValidationError as error:
        raise SpikedistillError(f"{found} is no repository's name: {_first(error)}") from None
    except Exception as error:
        http = type(error).__module__.partition(".")[0] in _HTTP  # another one from version to version
        if http or isinstance(error, ConnectionError | TimeoutError):
            raise SpikedistillError(offline.format(_first(error))) from None
        if isinstance(error, OSError):  # of this machine: its disk, its rights
            raise SpikedistillError(f"{found} cannot be {done}: {_first(error)}") from None
        raise


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


__all__ = ["FILES", "Repository", "fetch", "is_remote", "place", "pull", "upload"]
