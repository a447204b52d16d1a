"""Options and arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

TrackOption = Annotated[str | None, typer.Option(help="Log to tensorboard, wandb, mlflow ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
CodeOption = Annotated[
    list[Path] | None,
    typer.Option(help="A file of your own code, wherever it is and however it changed; may be repeated."),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Where the run's data lie now: an .npz file or a folder, for its data.root."),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="folder[/seed-N][:STAGE[@best]]")]
