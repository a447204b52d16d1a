"""Search a recipe's settings with optuna: best validation accuracy of the last stage."""

import json
from pathlib import Path
from typing import Any

from ..errors import SpikedistillError
from ..recipe import load, read_yaml
from .lock import locked
from .run import train


def sweep(
    recipe: str, space: Path, trials: int, out: Path, storage: str | None = None, device: str | None = None
) -> list[dict[str, Any]]:
    """Rows of the trials, best first.

    ``space``: YAML, ``path: {low, high, log, step}`` or ``path: [values]``.

    The test set takes no part in the choice. With ``storage`` (optuna's address of a database) several
    machines share a study; a study that exists is continued, a trial whose process died is tried again, and
    one that diverges is marked and left.
    """
    try:
        import optuna
    except ImportError:
        raise SpikedistillError("sweeps need optuna: pip install 'spikedistill[sweep]'") from None
    if not space.is_file():
        raise SpikedistillError(
            f"no space file {space}; it maps paths such as student.optimizer.lr to {{low, high, log}}"
        )
    if trials < 1:
        raise SpikedistillError(f"--trials must be at least 1, found {trials}")
    ranges = read_yaml(space)
    for path in ranges:
        # Every path is tried before the first trial trains.
        ends = _ends(path, ranges[path])
        read = [load(recipe, [_override(path, value)]) for value in ends]
        if any(one.data.validation == 0 for one in read):
            raise SpikedistillError("a sweep chooses by validation accuracy; set data.validation above 0")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    # In a file by default, so that a sweep that was killed goes on from its trials.
    try:
        study = optuna.create_study(
            direction="maximize",
            storage=storage or f"sqlite:///{out / 'study.db'}",
            study_name=Path(recipe).stem,
            load_if_exists=True,
        )
    # Of the database's own packages, of which optuna has several.
    except Exception as error:
        raise SpikedistillError(f"the storage of the study: {str(error).splitlines()[0]}") from None

    failures: list[SpikedistillError] = []

    def objective(trial: Any) -> float:
        overrides = [_override(path, _suggest(trial, path, values)) for path, values in ranges.items()]
        folder = out / trial.user_attrs.get("folder", f"trial-{trial.number}")
        try:
            run = train(recipe, out=folder, overrides=overrides, device=device)
        except SpikedistillError as error:  # one trial that diverges is an answer too
            trial.set_user_attr("error", str(error))
            failures.append(error)
            raise optuna.TrialPruned(str(error)) from None
        last = run.summary.stages[-1]
        figures = getattr(last, "figures", None)
        value = figures["validation_accuracy"].mean if figures else last.validation_accuracy  # type: ignore[union-attr]
        if value is None:
            raise SpikedistillError("a sweep chooses by validation accuracy; set data.validation above 0")
        return float(value)

    _retry(study, out, optuna)
    try:
        study.optimize(objective, n_trials=trials)
    except ValueError as error:
        # A study that exists has had other ranges.
        if "value space" not in str(error):
            raise
        raise SpikedistillError(
            f"{out} holds a study of another space ({error}); choose another --out"
        ) from None
    if failures and not any(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials):
        raise failures[-1]
    done = sorted(((t.value, t) for t in study.trials if t.value is not None), key=lambda pair: -pair[0])
    return [{"trial": t.number, "validation": f"{100 * value:.2f} %", **t.params} for value, t in done]


def _retry(study: Any, out: Path, optuna: Any) -> None:
    """Trials whose process died are asked again first, and go on in their folder; live ones are left."""
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        folder = trial.user_attrs.get("folder", f"trial-{trial.number}")
        if not (out / folder).is_dir():  # another machine's, or not begun
            continue
        try:
            # Whoever gets the lock knows that the process of the trial is dead.
            with locked(out / folder):
                pass
        except SpikedistillError:
            continue
        # Asked anew with the same values and the same folder, where its checkpoints lie.
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params, user_attrs={"folder": folder})


def _override(path: str, value: Any) -> str:
    """As an override reads it; a text like ``1e-05`` would be one to YAML, and so would ``None``."""
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        return f"{path}={mantissa}{'' if '.' in mantissa or not e else '.0'}{e}{exponent}"
    return f"{path}={json.dumps(value)}"


def _ends(path: str, values: Any) -> list[Any]:
    """The values at which a space is tried before the first trial: all of a list, both ends of a range."""
    if isinstance(values, list) and values:
        return values
    if isinstance(values, dict) and {"low", "high"} <= set(values) <= {"low", "high", "log", "step"}:
        low, high = values["low"], values["high"]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
        if not numbers or not low <= high or (values.get("log") and not low > 0):
            raise SpikedistillError(
                f"space: {path}: found low {low!r} and high {high!r}; give numbers, low not above high (with "
                "log above 0); YAML takes 1e-4 for a text, write 1.0e-4"
            )
        return [low, high]
    raise SpikedistillError(
        f"space: {path}: found {values!r}; give a list of values, or {{low: ..., high: ..., log: true}}"
    )


def _suggest(trial: Any, path: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(path, values)
    kind = (
        trial.suggest_int
        if isinstance(values["low"], int) and isinstance(values["high"], int)
        else trial.suggest_float
    )
    return kind(path, **values)
