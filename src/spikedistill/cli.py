"""The command line. Every command is a thin shell over the library; errors for people are one line, status 2."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import SpikedistillError
from .interrupt import STATUS as INTERRUPTED
from .interrupt import while_running
from .terminal import Table, show

TRY_AGAIN = 75  # a run that was asked to stop (training.signals)

app = typer.Typer(
    name="spikedistill",
    help="Train accurate, cheap spiking neural networks by distillation, quantize them, and see what they cost on a chip.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

TrackOption = Annotated[str | None, typer.Option(help="Log to tensorboard, wandb, mlflow ...")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="folder[/seed-N][:STAGE[@best]]")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for what the user has to mend, 75 and 130 when stopped.

    docs/reliability.md has them all.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn  # type: ignore[assignment]
            result = app(list(argv) if argv is not None else None, standalone_mode=False)
        return _interrupted() if result == INTERRUPTED else int(result or 0)
    except SpikedistillError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except SystemExit as stop:
        if not isinstance(stop.code, int) or stop.code != TRY_AGAIN:
            raise
        print(f"{stop}; the state is kept: `spikedistill resume RUN` goes on", file=sys.stderr)
        return TRY_AGAIN
    except OSError as error:
        if error.strerror is None:
            raise
        return _fail(f"{error.strerror}: {error.filename or ''}; what was written before is kept, resume continues it")
    except Exception as error:
        # Wrong usage. Typer brings click's errors from a place that differs between its versions.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # a group named without a command: its help
            print(message(), file=sys.stderr)
            return 2
        return _fail(message())


def _interrupted() -> int:
    """After Ctrl-C, which some versions of typer hand on as KeyboardInterrupt and others as this status."""
    print("stopped; what was finished is kept: `spikedistill resume RUN` goes on", file=sys.stderr)
    return INTERRUPTED


def _warn(message: Warning | str, *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _fail(words: str) -> int:
    print(f"error: {words}", file=sys.stderr)
    return 2


def _version(shown: bool) -> None:
    if shown:
        print(__version__)
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, help="Print the version.")] = False,
) -> None:
    """Train accurate, cheap spiking neural networks by distillation, quantize them, and see what they cost on a chip."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped name (see `recipes`) or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[path=value ...]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed.")] = None,
    seeds: Annotated[int | None, typer.Option(help="So many seeds.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, or the accelerator that is found.")] = None,
    track: TrackOption = None,
) -> None:
    """Run a recipe: all stages, all seeds, then the report. Into a folder that holds the same recipe: continue it."""
    from .training.run import train as run_recipe

    run = run_recipe(recipe, out=out, overrides=overrides or [], seeds=seeds, seed=seed, device=device, track=track)
    _finish(run.folder, run.summary)


def _finish(folder: Path, summary: Any) -> None:
    from .report import table
    from .report.page import write_report

    print()
    table.render(summary)
    print(f"\nreport: {write_report(folder)}")


@app.command()
def resume(
    run: RunArgument,
    changes: Annotated[list[str] | None, typer.Argument(metavar="[path=value ...]")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    track: TrackOption = None,
) -> None:
    """Go on where a run was stopped; finished stages are not trained again.

    optimizer.lr, .min_lr and .clip (also of a stage), data.workers and checkpoint may change; the record says from which step.
    """
    from . import data as datasets
    from .training.reevaluate import split_run
    from .training.run import read_claim
    from .training.run import run as run_recipe

    folder, _ = split_run(run)
    name, recipe = read_claim(folder)
    if not (folder / "recipe.yaml").exists():
        folder = folder.parent
    data = datasets.open(recipe.data, recipe.all_time_steps())
    done = run_recipe(None, name, folder, data, {}, device, track=track, changed=changes or [])
    _finish(done.folder, done.summary)


@app.command()
def evaluate(
    run: RunArgument,
    time_steps: Annotated[str, typer.Option(help="Such as 1,2,4.")] = "",
    integer: Annotated[bool, typer.Option("--integer", help="Also as an integer network.")] = False,
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="Also with norm statistics of that T.")] = False,
    rebin: Annotated[bool, typer.Option("--rebin", help="Also with recordings cut anew into T frames.")] = False,
    crossbar: Annotated[bool, typer.Option("--crossbar", help="Also through the ADCs of the recipe's chip.")] = False,
    device: Annotated[str, typer.Option()] = "cpu",
) -> None:
    """Test accuracy of a stage: at other time steps, recalibrated, in integers, on a crossbar."""
    from .training.machine import compiling
    from .training.reevaluate import reevaluate

    with compiling(False):
        found = reevaluate(run, _numbers(time_steps), integer, recalibrate, rebin, crossbar, device)
    print(f"{found.run}, stage {found.stage}, {found.images} test images")
    rows = sorted({T for column in found.columns.values() for T in column}, key=lambda T: T or 0)
    _table(["T", *found.columns], [[T or "-", *[_percent(c.get(T)) for c in found.columns.values()]] for T in rows])
    for note in found.notes:
        print(note)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = [0]
    if any(n < 1 for n in found):
        raise SpikedistillError(f"--time-steps takes whole numbers from 1, such as 1,2,4; found {text!r}")
    return found


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN ...")],
    out: Annotated[Path | None, typer.Option(help="The page's file; default report.html in the first run.")] = None,
) -> None:
    """Write the offline HTML page of one run, or of several side by side."""
    from .report.page import write_report
    from .training.reevaluate import split_run

    folders: list[Any] = [split_run(run)[0] for run in runs]
    print(write_report(folders if len(folders) > 1 else folders[0], out))


@app.command()
def recipes() -> None:
    """The recipes that come with the package."""
    from .recipe import load, shipped

    rows = []
    for name in sorted(shipped()):
        recipe = load(name)
        last: Any = next((s.network for s in reversed(recipe.stages) if s.network), {}) or {}
        rows.append(
            [
                name,
                recipe.title,
                ", ".join(recipe.paper) or "-",
                recipe.data.name,
                last.get("name", "-"),
                recipe.time_steps,
            ]
        )
    _table(["recipe", "title", "paper", "data", "network", "T"], rows)


@app.command()
def schema() -> None:
    """JSON schema of a recipe, for editors."""
    from .recipe import schema as recipe_schema

    print(json.dumps(recipe_schema(), indent=1))


@app.command()
def cite(recipe: Annotated[str, typer.Argument(metavar="RECIPE")]) -> None:
    """BibTeX of the papers a recipe uses."""
    from .bibliography import citations
    from .recipe import load

    print("\n\n".join(citations(load(recipe))))


@app.command()
def doctor() -> None:
    """What this machine has: versions, devices, bf16 units, a compiler."""
    from .precision import diagnosis
    from .training.run import environment

    found = environment()
    rows: list[list[Any]] = [["spikedistill", found["spikedistill"]], ["python", found["python"]]]
    rows += [[name, value or "not installed"] for name, value in found["packages"].items()]
    rows += [[name, value] for name, value in diagnosis().items()]
    _table(["what", "found"], rows)


@app.command()
def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="nir, onnx, integer or c.")],
    out: Annotated[Path, typer.Option(help="The file to write; for c a folder, or a file that ends in .c.")],
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="NIR: write what the format cannot say as metadata.")
    ] = False,
    weight_bits: Annotated[int | None, typer.Option(help="NIR: round weights to so many bits, thresholds too.")] = None,
    per_step: Annotated[bool, typer.Option("--per-step", help="ONNX: one time step, state in and out.")] = False,
) -> None:
    """Write a stage's network for other tools; the whole file or, where the network has no such form, none."""
    from . import export as formats
    from .files import destination, exported
    from .training.machine import compiling
    from .training.reevaluate import open_run

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
    if to != "c":
        destination(out)
    _, stage, _, data, network = open_run(run)
    if to == "c":
        for file in formats.to_c(network, out):
            print(f"{file}: stage {stage}, {file.stat().st_size:,} bytes")
        return
    x, _ = next(iter(data.batches("test", 16)))
    with compiling(False):
        if to == "nir":
            formats.to_nir(network, out, x, allow_lossy=allow_lossy, weight_bits=weight_bits)
        elif to == "onnx":
            formats.to_onnx(network, out, x, per_step=per_step)
        else:
            from .quantization import to_integer

            whole = to_integer(network)
            with exported(out) as temporary:
                whole.save(temporary)
    print(f"{out}: stage {stage}, {out.stat().st_size:,} bytes")


@app.command()
def hardware(
    run: Annotated[str | None, typer.Argument(metavar="RUN")] = None,
    layers: Annotated[Path | None, typer.Option(help="A YAML file of layers instead of a run.")] = None,
    config: Annotated[Path | None, typer.Option(help="Chip settings; over the layer file's and the recipe's.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Another run to divide by; may be repeated.")] = None,
    iso_accuracy: Annotated[
        bool, typer.Option("--iso-accuracy", help="Divide by the cheapest that is as accurate.")
    ] = False,
    layers_out: Annotated[Path | None, typer.Option(help="Write the layers of the run to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Energy, latency and area of a stage's network on a chip, beside operation and memory counts."""
    from .report.hardware_command import hardware_command
    from .training.machine import compiling

    with compiling(False):
        return hardware_command(run, layers, config, against or [], iso_accuracy, layers_out, as_json)


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE ...")],
    seeds: Annotated[int, typer.Option()] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    device: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Run several recipes over the same seeds and put them on one page."""
    from .report import table
    from .report.page import write_report
    from .training.run import train as run_recipe

    found = [run_recipe(recipe, out=out / Path(recipe).stem, seeds=seeds, device=device) for recipe in recipes]
    for run in found:
        print()
        table.render(run.summary)
    print(f"\nreport: {write_report([run.folder for run in found], out / 'comparison.html')}")


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE")],
    space: Annotated[Path, typer.Option(help="YAML: path -> {low, high, log} or a list of values.")],
    trials: Annotated[int, typer.Option()] = 20,
    out: Annotated[Path, typer.Option()] = Path("runs/sweep"),
    storage: Annotated[str | None, typer.Option(help="An optuna storage shared by several machines.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Search a recipe's settings for the best validation accuracy of its last stage."""
    from .training.sweep import sweep as run_sweep

    rows = run_sweep(recipe, space, trials, out, storage, device)
    _table(list(rows[0]), [list(row.values()) for row in rows])


@data_app.command("verify")
def data_verify(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[path=value ...]")] = None,
) -> int:
    """Check a recipe's data: counts, decodability, hashes; names the bad file."""
    from .data.verify import verify
    from .recipe import load

    found = verify(load(recipe, overrides or []).data)
    print(found)
    return 0 if found.ok else 2


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table of words."""
    show(Table(columns, rows, left=range(len(columns))))


def script() -> None:
    """Entry point of the installed command."""
    while_running()
    status = main()
    sys.stdout.flush()
    sys.exit(status)


__all__: list[str] = ["main"]

if __name__ == "__main__":
    script()
