"""Code of one's own by address, ``module:Name``: where it may come from, and that it is what the record says.

While a recipe is read or trained, modules are looked for beside the recipe's file, in the current folder,
among installed packages, and where ``--code FILE`` says; never in a run's folder, which may come from
anybody. Commands that only read a run import nothing (:func:`closed`).
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module, invalidate_caches
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import SpikedistillError

TWIN = ".recipe.json"  # what recipe.yaml said when it was written; a folder with this file is a run's
_ADDRESS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_LIBRARIES = ("timm", "torchvision", "custom")  # prefixes of networks' names that are no modules of one's own


def installed(kind: str) -> dict[str, Any]:
    """What other packages bring of a kind, by name: their entry points of the group ``spikedistill.KIND``."""
    return {entry.name: entry.load() for entry in entry_points(group=f"spikedistill.{kind}")}


class NotImportedError(SpikedistillError):
    """Own code where none is imported."""


class ChangedCodeError(SpikedistillError):
    """Own code that is not what a run was begun with."""


@dataclass
class Search:
    """Where own code comes from while this holds; ``found``: file and sha256 of each address so far."""

    shut: bool = False
    run: Path | None = None
    files: dict[Path, str] = field(default_factory=dict)
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)


_SEARCH: ContextVar[Search | None] = ContextVar("spikedistill_own_code", default=None)


def is_address(name: Any) -> bool:
    """Whether ``name`` has the form ``module:Name``."""
    return (
        isinstance(name, str) and bool(_ADDRESS.fullmatch(name)) and name.partition(":")[0] not in _LIBRARIES
    )


def is_open() -> bool:
    """Whether somebody allowed own code here."""
    search = _SEARCH.get()
    return search is not None and not search.shut


def is_training() -> bool:
    """Whether a run is being trained, so that own code is what its networks are made of."""
    search = _SEARCH.get()
    return is_open() and search is not None and search.run is not None


def recorded(text: str) -> dict[str, Any]:
    """File and sha256 of an address that was found here; nothing of others."""
    search = _SEARCH.get()
    return dict(search.found.get(text, {})) if search is not None else {}


def is_shut() -> bool:
    """Whether own code is not imported here."""
    search = _SEARCH.get()
    return search is not None and search.shut


@contextmanager
def closed() -> Iterator[None]:
    """Within: no own code is imported, unless a :func:`search` inside allows it."""
    token = _SEARCH.set(Search(shut=True))
    try:
        yield
    finally:
        _SEARCH.reset(token)


@contextmanager
def reading(code: Sequence["str | Path"] = ()) -> Iterator[None]:
    """Within: a run is read, only files that ``code`` names imported; inside a :func:`search` all stays."""
    if code:
        with search(code=code):
            yield
    elif is_open():
        yield
    else:
        with closed():
            yield


@contextmanager
def search(
    folders: Iterable[Path] = (),
    run: Path | None = None,
    code: Sequence["str | Path"] = (),
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Search]:
    """Within: own code comes from ``code`` (files), ``folders``, the current folder and installed packages.

    ``run``: the folder of the run, from which nothing is imported. ``known``: of a run that has begun,
    ``{address: {file, sha256}}``: another content is refused unless ``code`` names its file.
    """
    files = {_file(path): _digest(Path(path)) for path in code}
    for file in files:
        if _of_a_run(file.parent, run.resolve() if run is not None else None):
            raise SpikedistillError(
                f"--code {file}: it lies in a run's folder, from which nothing is imported; copy it out"
            )
    here = Search(False, run.resolve() if run is not None else None, files, known or {})
    before = list(sys.path)
    # What was named comes first: of two modules of one name that one is meant.
    roots = [*(root for file in files for root in _roots(file)), *folders, Path.cwd()]
    wanted = dict.fromkeys([*(str(Path(root).resolve()) for root in roots), *before])
    # The current folder may be a run's, with a file in it that somebody planted: such entries go.
    sys.path[:] = [entry for entry in wanted if not _of_a_run(Path(entry or "."), here.run)]
    # A file that was written a moment ago is not yet in the finders' listings of its folder.
    invalidate_caches()
    token = _SEARCH.set(here)
    try:
        yield here
    finally:
        _SEARCH.reset(token)
        # What the imported code itself put on the path stays: it may import from there later.
        sys.path[:] = [*(entry for entry in sys.path if entry not in wanted), *before]


@contextmanager
def beside(file: Path | None) -> Iterator[None]:
    """Within: own code may stand beside a recipe's ``file``.

    Nothing changes inside of a :func:`search` or :func:`closed`.
    """
    if file is None or _SEARCH.get() is not None:
        yield
        return
    with search([file.parent]):
        yield


def find(text: str, what: str) -> Any:
    """What ``module:Name`` names; ``what`` begins an error.

    Raises: NotImportedError where own code is not imported; SpikedistillError for what cannot be imported or
    has another content than the run's record says.
    """
    module, _, name = text.partition(":")
    here = _SEARCH.get()
    if here is not None and here.shut:
        raise NotImportedError(
            f"{what} {text!r} is code of your own, which is not imported to read a run; "
            "name its file to allow it: --code FILE"
        )
    try:
        # Found and compared before the import: to import a file is to run it.
        file = None if here is None else _located(module, text, what, here)
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    # Its own words, which the next clause would wrap: it is a ValueError too.
    except SpikedistillError:
        raise
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SpikedistillError(
            f"{what} {text!r} names nothing that can be imported: {error} (looked for beside the recipe, in "
            "this folder and in what is installed; --code FILE names the file)"
        ) from None
    except Exception as error:  # whatever the module does when it is run
        raise SpikedistillError(
            f"{what} {text!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if here is not None:
        here.found[text] = {"file": file.name if file else None, "sha256": _digest(file) if file else None}
    return found


def address_of(target: Any) -> str | None:
    """The address under which another process finds a class or function.

    None for what has none (a lambda, an instance).
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    text = f"{module}:{name}"
    # In another process __main__ is another file; what is defined in a function has <locals> in its name.
    return text if module != "__main__" and is_address(text) else None


def in_use(networks: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """For the record: files and hashes of code found so far, addresses of the caller's networks by name."""
    here = _SEARCH.get()
    if here is None or here.shut:
        return {}, {}
    named = {}
    for name, target in networks.items():
        text = address_of(target)
        try:
            if text is not None and find(text, f"network {name!r},") is target:
                named[name] = text
        # Not passed over as below: a run must not go on with other code without a word.
        except ChangedCodeError:
            raise
        except SpikedistillError:  # not to be found under its address: the caller has to bring it again
            continue
    return dict(here.found), named


def _located(module: str, text: str, what: str, here: Search) -> Path | None:
    """The module's file, found without running it, and allowed."""
    # An import gives what is loaded under that name, whatever the path says: the two must be one file.
    loaded = sys.modules.get(module)
    file = _origin(module)
    if loaded is not None:
        theirs = getattr(loaded, "__file__", None)
        theirs = Path(theirs).resolve() if theirs else None
        if file is not None and theirs is not None and theirs != file:
            raise SpikedistillError(
                f"{what} {text!r}: {file} is meant, but a module {module!r} of {theirs} is imported already; "
                "rename yours, or start a new process"
            )
        file = theirs
    if file is None:
        return None
    if _of_a_run(file.parent, here.run):
        raise SpikedistillError(
            f"{what} {text!r}: {file} lies in a run's folder, from which nothing is imported; move it beside "
            "the recipe, or to the current folder"
        )
    then = here.known.get(text, {}).get("sha256")
    # A file that `code` names passes whatever the record says: to name it is to allow it.
    if then is not None and file not in here.files and (now := _digest(file)) != then:
        raise ChangedCodeError(
            f"{what} {text!r}: {file} is not the code this run was begun with (sha256 {str(then)[:12]}... "
            f"there, {now[:12]}... here); put the old file back, or name this one to go on with it: --code "
            f"{file}"
        )
    return file


def _origin(module: str) -> Path | None:
    """Where a module's file is; nothing but the packages around it is run."""
    parts = module.split(".")
    path: Any = None
    for i in range(1, len(parts) + 1):
        if i > 1:
            # A package says itself where its modules are, so it has to be imported first.
            path = list(getattr(import_module(".".join(parts[: i - 1])), "__path__", []))
        spec = PathFinder.find_spec(".".join(parts[:i]), path)
        if spec is None and module not in sys.modules:
            spec = find_spec(module)  # of a package that brings a finder of its own
            break
        if spec is None:
            return None
    origin = spec.origin if spec is not None and spec.has_location else None
    return Path(origin).resolve() if origin else None


def _of_a_run(folder: Path, run: Path | None) -> bool:
    """Whether a folder is a run's, or lies in one."""
    folder = folder.resolve()
    return any(place == run or (place / TWIN).exists() for place in (folder, *folder.parents))


def _roots(file: Path) -> Iterator[Path]:
    """The folder in which a file's module is found: above its package, where it lies in one."""
    root = file.parent if file.name != "__init__.py" else file.parent.parent
    while (root / "__init__.py").exists():
        root = root.parent
    yield root


def _file(path: "str | Path") -> Path:
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise SpikedistillError(f"--code {path}: no Python file there; name the .py file that holds the code")
    return file.resolve()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
