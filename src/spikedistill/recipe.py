"""The typed recipe: one YAML file says data, stages and hardware; all is checked before anything runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    model_validator,
)

from . import own_code
from .data.config import DataConfig
from .errors import SpikedistillError, nearest
from .network_options import NetworkOptions
from .objectives import Objective, ObjectiveOptions, UnseenObjective
from .overrides import apply_override
from .quantization import quantize
from .quantization.options import Options as Quantizer
from .rate_based import Backpropagation
from .reading import MAX_YAML_BYTES, parse_yaml, read_text
from .recipe_checks import check
from .recipes import shipped
from .typed import Choice, Options, Strict, model_of, read

LARGEST_SEED = 1 << 62  # a run's files hold integers of 64 bits


class QuantizeOptions(Choice):
    """A stage's ``quantize``: the options of :func:`spikedistill.quantize`."""

    @classmethod
    def chosen(cls, given: Mapping[str, Any], info: ValidationInfo | None = None) -> "type[QuantizeOptions]":
        return model_of(quantize, ("network", "calibration"), cls)

    @classmethod
    def examples(cls) -> "list[type[QuantizeOptions]]":
        return [cls.chosen({})]

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        Quantizer(**{field.name: getattr(self, field.name) for field in fields(Quantizer)})
        return self


class Optimizer(Options):
    """Optimizer and learning-rate schedule of a stage.

    ``schedule``: "cosine" (to ``min_lr``), "step" (times ``gamma`` every ``step_epochs`` epochs), "one_cycle"
    (up for ``one_cycle_up`` of the way, then cosine down to ``min_lr``) or "constant"; before it, ``warm_up``
    epochs rise linearly from ``warm_up_lr``. No weight decay on norms, biases and neuron parameters.
    ``clip``: largest gradient norm. ``ema``: decay of an exponential moving average of the weights, which
    then is the stage's product.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "step", "one_cycle", "constant"] = "cosine"
    min_lr: NonNegativeFloat = 0.0
    warm_up: NonNegativeFloat = 0.0
    warm_up_lr: NonNegativeFloat = 0.0
    step_epochs: PositiveInt = 30
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    one_cycle_up: Annotated[float, Field(gt=0, lt=1)] = 0.3
    clip: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    accumulate: PositiveInt = 1


class Checkpoint(Strict):
    """How often a run writes its state: after so many ``seconds`` and, if given, so many ``steps`` (updates).

    The last two are kept. A stage's end writes one in any case.
    """

    seconds: Annotated[float, Field(gt=0)] = 30.0
    steps: PositiveInt | None = None


class Init(Strict):
    """Where initial weights come from: a stage; ``copy`` (equal names) or ``threshold_balancing`` (LaSNN)."""

    from_: str = Field(alias="from")
    method: Literal["copy", "threshold_balancing"] = "copy"
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.9


class Convert(Strict):
    """A trained ANN stage as SNN, see :func:`spikedistill.convert`: the baseline of distillation."""

    from_: str = Field(alias="from")
    method: Literal["threshold_balancing", "qcfs", "signed"] = "threshold_balancing"
    percentile: Annotated[float, Field(gt=0, le=100)] | Literal["max"] = 99.9
    initial: Annotated[float, Field(ge=0, lt=1)] = 0.5
    levels: PositiveInt = 8


class Stage(Strict):
    """One training run; its product is a checkpoint and one row of the results table.

    Its network is made anew (``network``), goes on from another stage's (``from``), or is another stage's ANN
    converted (``convert``, which trains nothing unless ``epochs`` says so).

    ``recalibrate``: measure the norms' statistics anew before training; None: where the weights come from a
    spiking network with another T. ``settle``: measure them for each validation and for the finished network
    (auto: yes), so that they are those of the weights as they are. ``teacher``: a stage, a list of stages (of
    equal weight), or a mapping of stages to weights; ``teacher_heads``: copies of their classifiers learn
    beside the student (:class:`spikedistill.Distiller`); ``keep_answers``: what teachers give for a training
    input is kept for the epochs after it (data without augmentation; equal but for rounding). ``operations``:
    synaptic operations of one input that training aims at, by an objective of that name
    (:class:`spikedistill.objectives.OperationsAim`). ``time_inheritance``: fewer time steps for the first
    part of the training (:mod:`spikedistill.time_inheritance`). ``backpropagation``: through time, or
    rate-based (:mod:`spikedistill.neurons.rates`).
    """

    name: str
    network: SerializeAsAny[NetworkOptions] | None = None
    from_: str | None = Field(default=None, alias="from")
    convert: Convert | None = None
    init: Init | None = None
    teacher: str | list[str] | dict[str, float] | None = None
    teacher_heads: bool = False
    keep_answers: bool = False
    epochs: NonNegativeInt = 1
    time_steps: PositiveInt | None = None
    time_inheritance: dict[PositiveInt, PositiveFloat] = {}
    backpropagation: Backpropagation = "through_time"
    objectives: list[SerializeAsAny[ObjectiveOptions]] = []
    optimizer: Optimizer = Optimizer()
    quantize: SerializeAsAny[QuantizeOptions] | None = None
    accuracy_at: list[PositiveInt] = []
    recalibrate: bool | None = None
    settle: Literal["auto"] | bool = "auto"
    operations: PositiveFloat | None = None

    @property
    def teachers(self) -> dict[str, float] | None:
        """Weight of each teacher by its stage; None where there is none."""
        if self.teacher is None or isinstance(self.teacher, dict):
            return self.teacher
        names = [self.teacher] if isinstance(self.teacher, str) else self.teacher
        return {name: 1 / len(names) for name in names}

    @property
    def terms(self) -> list[Objective]:
        """The objectives to look at; a training builds its own."""
        return [options.untrained for options in self.objectives if not isinstance(options, UnseenObjective)]

    @model_validator(mode="before")
    @classmethod
    def _operations_are_aimed_at(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("operations") is None:
            return given
        # No objectives mean cross-entropy; with the aim in the list that has to be written out.
        given_ones, aim = given.get("objectives") or [{"type": "cross_entropy"}], {"type": "operations_aim"}
        if not isinstance(given_ones, list):
            return given
        # A run's record has the aim among its objectives already: it must not come in twice, and an override
        # of `operations` is one of it too.
        aimed = [isinstance(o, Mapping) and aim.items() <= o.items() for o in given_ones]
        if any(aimed):
            ones = [
                {**o, "operations": given["operations"]} if is_aim else o
                for o, is_aim in zip(given_ones, aimed)
            ]
            return {**given, "objectives": ones}
        return {**given, "objectives": [*given_ones, {**aim, "operations": given["operations"]}]}

    @model_validator(mode="before")
    @classmethod
    def _conversion_trains_nothing(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("convert") is not None:
            # Before what is given, which may still ask for epochs.
            return {"epochs": 0, **given}
        return given


class Recipe(Strict):
    """Data, stages, hardware. ``paper``: keys of citations beyond those of the objectives and networks."""

    title: str = ""
    paper: list[str] = []
    data: DataConfig = DataConfig()
    time_steps: PositiveInt = 4
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    seeds: PositiveInt = 1
    optimizer: Optimizer = Optimizer()
    stages: Annotated[list[Stage], Field(min_length=1)]
    hardware: dict[str, Any] = {}
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    memory: Literal["default", "packed", "lean"] = "default"
    checkpoint: Checkpoint = Checkpoint()

    def stage(self, name: str) -> Stage:
        """The stage of that name; raises with the nearest names."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise SpikedistillError(
            f"the recipe has no stage {name!r}; {nearest(name, [s.name for s in self.stages])}"
        )

    def optimizer_of(self, stage: Stage) -> Optimizer:
        """The recipe's optimizer with the stage's own words over it."""
        # Rates and momentum of SGD mean nothing to Adam: with another name nothing is inherited.
        other = stage.optimizer.get("name", self.optimizer.name) != self.optimizer.name
        return Optimizer(**{**({} if other else self.optimizer), **stage.optimizer})

    def all_time_steps(self) -> list[int]:
        """Every T the recipe uses, longer simulations of objectives included."""
        found = {self.time_steps}
        for stage in self.stages:
            found |= {stage.time_steps or self.time_steps}
            found |= {int(o["time_steps"]) for o in stage.objectives if isinstance(o.get("time_steps"), int)}
        return sorted(found)

    def plain(self) -> dict[str, Any]:
        """As a mapping that YAML and JSON can hold, defaults that were not given left out."""
        # By way of JSON: tuples become lists, so that it equals what is read back from a run's file.
        return json.loads(self.model_dump_json(by_alias=True, exclude_unset=True))


def load(
    source: "str | Path | Mapping[str, Any] | Recipe",
    overrides: Sequence[str] = (),
    custom: Iterable[str] = (),
) -> Recipe:
    """A checked recipe from a shipped name, a file, a mapping or a recipe, with ``path=value`` overrides.

    ``custom``: the caller's own networks by name (or their names alone: then their options are not checked).
    Own code of a file, ``module:Name``, may stand beside it (:mod:`.own_code`). Raises
    :class:`SpikedistillError` naming file, path, what was found, what is allowed and the nearest known name.
    """
    path: Path | None = None
    if isinstance(source, Recipe):
        tree, where = source.plain(), ""
    elif isinstance(source, Mapping):
        # A copy: overrides must not change the caller's mapping.
        tree, where = _copy(source), ""
    else:
        path = locate(source)
        tree, where = read_yaml(path), f"{path.name if Path(str(source)).stem == str(source) else path}: "
    for override in overrides:
        apply_override(tree, override)
    try:
        with own_code.beside(path):
            recipe = read(Recipe, tree, "", {"custom": custom})
            check(recipe)
    except SpikedistillError as error:
        raise SpikedistillError(where + str(error)) from None
    return recipe


def _copy(given: Mapping[str, Any]) -> dict[str, Any]:
    """As it would come out of a file; a path is its text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, PurePath):
            return str(value)
        raise SpikedistillError(
            "a recipe holds numbers, text, lists and mappings, found "
            f"{type(value).__module__}.{type(value).__qualname__}: {value!r}"
        )

    try:
        return json.loads(json.dumps(dict(given), default=plain))
    except (TypeError, ValueError) as error:  # keys that are no text, a mapping within itself
        raise SpikedistillError(f"a recipe is a mapping as a YAML file holds it: {error}") from None


def locate(source: "str | Path") -> Path:
    """The file of a shipped name or a path."""
    path = Path(source)
    if path.is_file():
        return path
    known = shipped()
    if str(source) in known:
        return known[str(source)]
    if path.suffix in (".yaml", ".yml") or "/" in str(source):
        raise SpikedistillError(f"no recipe file {source}; `spikedistill recipes` lists the shipped ones")
    raise SpikedistillError(
        f"no shipped recipe and no file named {str(source)!r}; {nearest(str(source), known)}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; an error names line and column."""
    tree = parse_yaml(read_text(path, MAX_YAML_BYTES), str(path))
    if not isinstance(tree, dict):
        raise SpikedistillError(f"{path}: a recipe is a mapping with `stages:`, found {type(tree).__name__}")
    return tree


def schema() -> dict[str, Any]:
    """JSON schema of a recipe for editors: networks, objectives and quantizers spelled out."""
    return Recipe.model_json_schema(by_alias=True)
