"""The command line. Every command is a thin shell over the library; what people have to mend is one line."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import typer

from . import __version__
from .cli_options import CodeOption, DataOption, JsonOption, RunArgument, TrackOption
from .errors import SpikedistillError
from .interrupt import while_running
from .processes import leads
from .status import ended
from .terminal import Table, tell

app = typer.Typer(
    name="spikedistill",
    help="Train accurate, cheap spiking neural networks by distillation, quantize them, "
    "and see what they cost on a chip.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

INDENTED: Any = {"initial_indent": "    ", "subsequent_indent": "    "}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for what the user has to mend, 75 and 130 when stopped."""
    return ended(app, argv)


def _version(shown: bool) -> None:
    if shown:
        print(__version__)
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, help="Print the version.")] = False,
) -> None:
    """What stands before a command; the help of the whole program is above."""


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped name (see `recipes`) or a YAML file.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[path=value ...]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed.")] = None,
    seeds: Annotated[int | None, typer.Option(help="So many seeds.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, or the accelerator that is found.")] = None,
    track: TrackOption = None,
    as_json: JsonOption = False,
    code: CodeOption = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Take over its finished stages that are equal; may be repeated."),
    ] = None,
) -> None:
    """Run a recipe: all stages, all seeds, then the report; into a folder that holds it already: continue."""
    # Imported within the commands: help, recipes and cite must not wait for torch.
    from .training.reuse import runs
    from .training.run import train as run_recipe

    if seed is not None and seeds is not None:
        raise SpikedistillError("--seed trains one seed and --seeds several; give one of them")
    options: dict[str, Any] = {"overrides": overrides or [], "code": code or (), "reuse": runs(reuse or ())}
    run = run_recipe(recipe, out=out, seeds=seeds, seed=seed, device=device, track=track, **options)
    _finish(run.folder, run.summary, as_json)


def _finish(folder: Path, summary: Any, as_json: bool) -> None:
    # Of several processes one writes; the others may be here before the folder is whole.
    if not leads():
        return
    from .report import table
    from .report.page import write_report

    page = write_report(folder)
    parts: list[Any] = ["", table.shown(summary), *table.lines_below(summary), f"\nreport: {page}"]
    tell({"report": page, "summary": summary.model_dump(mode="json")}, *parts, as_json=as_json)


@app.command()
def resume(
    run: RunArgument,
    changes: Annotated[list[str] | None, typer.Argument(metavar="[path=value ...]")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    track: TrackOption = None,
    as_json: JsonOption = False,
    code: CodeOption = None,
) -> None:
    """Go on where a run was stopped; finished stages are not trained again.

    optimizer.lr, .min_lr and .clip (also of a stage), data.workers and checkpoint may change; the record says
    from which step.
    """
    from .training.reevaluate import split_run
    from .training.run import resume as resume_run

    done = resume_run(split_run(run)[0], changes or [], device, track=track, code=code or ())
    _finish(done.folder, done.summary, as_json)


@app.command()
def evaluate(
    run: RunArgument,
    time_steps: Annotated[str, typer.Option(help="Such as 1,2,4.")] = "",
    integer: Annotated[bool, typer.Option("--integer", help="Also as an integer network.")] = False,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Also with norm statistics of that T.")
    ] = False,
    rebin: Annotated[
        bool, typer.Option("--rebin", help="Also with recordings cut anew into T frames.")
    ] = False,
    crossbar: Annotated[
        bool, typer.Option("--crossbar", help="Also through the ADCs of the recipe's chip.")
    ] = False,
    device: Annotated[str, typer.Option()] = "cpu",
    data: DataOption = None,
    as_json: JsonOption = False,
    code: CodeOption = None,
) -> None:
    """Test accuracy of a stage, by seed; at other time steps, recalibrated, in integers, on a crossbar."""
    from . import own_code
    from .data import elsewhere
    from .report.evaluate_command import evaluate_command
    from .training.machine import compiling

    # Uncompiled, here and below: one pass over the data seldom outlasts the compiling.
    with compiling(False), own_code.reading(code or ()), elsewhere(data):
        evaluate_command(
            run, as_json, time_steps=_numbers(time_steps), integer=integer, recalibrate=recalibrate,
            rebin=rebin, crossbar=crossbar, device=device,
        )  # fmt: skip


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        # Not a number: refused below, with the same words as a number that is too small.
        found = [0]
    if any(n < 1 for n in found):
        raise SpikedistillError(f"--time-steps takes whole numbers from 1, such as 1,2,4; found {text!r}")
    return found


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN ...")],
    out: Annotated[Path | None, typer.Option(help="The page's file; default: in the first run.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Make it again while the run goes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the offline HTML page of one run, or of several side by side."""
    from .report.page import write_report
    from .report.parts import load
    from .training.reevaluate import split_run

    folders: list[Any] = [split_run(run)[0] for run in runs]
    if watch:
        from .report.watch import watch as watch_run

        if len(folders) > 1 or as_json:
            raise SpikedistillError("--watch takes one run, and no --json")
        watch_run(folders[0], out)
        return
    page = write_report(folders if len(folders) > 1 else folders[0], out)
    asked = runs if as_json else []
    found = {run: load(folder).summary.model_dump(mode="json") for run, folder in zip(asked, folders)}
    tell({"report": page, "summaries": found}, str(page), as_json=as_json)


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """The recipes that come with the package."""
    from .recipes import shelf

    found = shelf()
    lines = []
    for one in found:
        about = f"{one['data']}, {one['network'] or '-'}, T = {one['time_steps']}"
        papers = f" [{', '.join(one['paper'])}]" if one["paper"] else ""
        lines += [f"{one['recipe']:<36} {about}", fill(one["title"] + papers, 80, **INDENTED)]
    tell(found, *lines, as_json=as_json)


@app.command()
def schema() -> None:
    """JSON schema of a recipe, for editors."""
    from .recipe import schema as recipe_schema

    print(json.dumps(recipe_schema(), indent=1))


@app.command()
def cite(recipe: Annotated[str, typer.Argument(metavar="RECIPE")]) -> None:
    """BibTeX of the papers a recipe uses."""
    from .bibliography import citations

    print("\n\n".join(citations(recipe)))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """What this machine has: versions, devices, bf16 units, a compiler."""
    from .precision import diagnosis
    from .training.run_folder import environment

    found = environment()
    rows: list[list[Any]] = [["spikedistill", found["spikedistill"]], ["python", found["python"]]]
    rows += [[name, value or "not installed"] for name, value in found["packages"].items()]
    rows += [[name, value] for name, value in diagnosis().items()]
    _table(["what", "found"], rows, dict(rows), as_json)


@app.command()
def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="nir, onnx, integer or c.")],
    out: Annotated[Path, typer.Option(help="The file to write; for c a folder, or a file that ends in .c.")],
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="NIR: write what the format cannot say as metadata.")
    ] = False,
    weight_bits: Annotated[
        int | None, typer.Option(help="NIR: round weights to so many bits, thresholds too.")
    ] = None,
    per_step: Annotated[
        bool, typer.Option("--per-step", help="ONNX: one time step, state in and out.")
    ] = False,
    data: DataOption = None,
    code: CodeOption = None,
) -> None:
    """Write a stage's network for other tools: a whole file or, where it has no such form, none."""
    from . import own_code
    from .data import elsewhere
    from .report.export_command import export_command
    from .training.machine import compiling

    with compiling(False), own_code.reading(code or ()), elsewhere(data):
        export_command(run, to, out, allow_lossy, weight_bits, per_step)


@app.command()
def push(
    run: RunArgument,
    target: Annotated[
        str, typer.Argument(metavar="owner/name", help="Of the hub; or file://FOLDER, ./FOLDER.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="A repository that is made now is private.")
    ] = False,
) -> None:
    """Upload a stage's network to the Hugging Face hub, its card filled from the run."""
    from .report.hub_command import push as push_stage

    print(push_stage(run, target, private))


@app.command()
def pull(
    source: Annotated[
        str, typer.Argument(metavar="owner/name[@revision]", help="Or file://FOLDER, ./FOLDER.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: the name.")] = None,
) -> None:
    """Copy a network from the hub to a folder; sd.load("hf://owner/name") needs no copy."""
    from .hub import pull as pull_network

    print(pull_network(source, out))


@app.command()
def hardware(
    run: Annotated[str | None, typer.Argument(metavar="RUN")] = None,
    layers: Annotated[Path | None, typer.Option(help="A YAML file of layers instead of a run.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Chip settings; over the layer file's and the recipe's.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Another run to divide by; may be repeated.")
    ] = None,
    iso_accuracy: Annotated[
        bool, typer.Option("--iso-accuracy", help="Divide by the cheapest that is as accurate.")
    ] = False,
    layers_out: Annotated[Path | None, typer.Option(help="Write the layers of the run to this file.")] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
    code: CodeOption = None,
) -> int:
    """Energy, latency and area of a stage's network on a chip, beside operation and memory counts."""
    from . import own_code
    from .data import elsewhere
    from .report.hardware_command import hardware_command
    from .training.machine import compiling

    with compiling(False), own_code.reading(code or ()), elsewhere(data):
        return hardware_command(run, layers, config, against or [], iso_accuracy, layers_out, as_json)


@app.command()
def compare(
    recipes: Annotated[list[str] | None, typer.Argument(metavar="[RECIPE ... | path=value ...]")] = None,
    methods: Annotated[
        str | None, typer.Option(help="all, or names such as kdsnn,tet: on one data set.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Recipe, data set, .npz or folder that they are tried on.")
    ] = None,
    seeds: Annotated[int, typer.Option()] = 3,
    budget: Annotated[
        str | None, typer.Option(help="Such as 2h: methods that do not fit are left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; of a comparison of methods.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    as_json: JsonOption = False,
) -> None:
    """Train several recipes side by side, or methods on your data to say which to take (--methods, --on)."""
    from .report.compare_command import compare_command

    compare_command(recipes or [], methods, on, seeds, budget, out, device, as_json)


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE")],
    space: Annotated[Path, typer.Option(help="YAML: path -> {low, high, log} or a list of values.")],
    trials: Annotated[int, typer.Option()] = 20,
    out: Annotated[Path, typer.Option()] = Path("runs/sweep"),
    storage: Annotated[str | None, typer.Option(help="An optuna storage shared by several machines.")] = None,
    device: Annotated[str | None, typer.Option()] = None,
    as_json: JsonOption = False,
) -> None:
    """Search a recipe's settings for the best validation accuracy of its last stage."""
    from .training.sweep import sweep as run_sweep

    rows = run_sweep(recipe, space, trials, out, storage, device)
    _table(list(rows[0]), [list(row.values()) for row in rows], rows, as_json)


@data_app.command("verify")
def data_verify(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[path=value ...]")] = None,
    as_json: JsonOption = False,
) -> int:
    """Check a recipe's data: counts, decodability, hashes; names the bad file."""
    from .data.verify import verify
    from .recipe import load

    read = load(recipe, overrides or [])
    found = verify(read.data, read.all_time_steps())
    tell(asdict(found), str(found), as_json=as_json)
    return 0 if found.ok else 2


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], tree: Any, as_json: bool) -> None:
    """A table of words."""
    tell(tree, Table(columns, rows, left=range(len(columns))), as_json=as_json)


def script() -> None:
    """Entry point of the installed command."""
    while_running()
    status = main()
    sys.stdout.flush()
    sys.exit(status)


__all__: list[str] = ["main"]

if __name__ == "__main__":
    script()
