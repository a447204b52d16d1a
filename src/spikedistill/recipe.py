"""The typed recipe: one YAML file says data, stages and hardware; everything in it is checked before anything runs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from . import networks, objectives
from .data.config import DataConfig
from .errors import SpikedistillError, nearest
from .networks.pretrained import from_name
from .overrides import RESERVED, apply_override
from .reading import MAX_YAML_BYTES, parse_yaml, read_text
from .teachers import lessons, shares
from .typed import Numbers, checked

# Keys of a stage's `network` that are not options of its builder.
NETWORK_KEYS = ("name", "ann", "spiking", "weights", "pretrained", "input_size", "neuron")


class Strict(Numbers):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Optimizer(Strict):
    """Optimizer and learning-rate schedule of a stage.

    ``schedule``: "cosine" (to ``min_lr``), "step" (times ``gamma`` every ``step_epochs`` epochs), "one_cycle" (up for
    ``one_cycle_up`` of the way, then cosine down) or "constant"; before it, ``warm_up`` epochs rise linearly from
    ``warm_up_lr``. No weight decay on norms, biases and neuron parameters. ``clip``: largest gradient norm. ``ema``: decay of
    an exponential moving average of the weights, which then is the stage's product.
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
    """How often a run writes its state: after so many ``seconds``, and, where given, after so many ``steps`` (updates).

    The last two are kept. A stage's end writes one in any case.
    """

    seconds: Annotated[float, Field(gt=0)] = 30.0
    steps: PositiveInt | None = None


class Init(Strict):
    """Where initial weights come from: a stage; ``copy`` (equal names) or ``threshold_balancing`` (after LaSNN)."""

    from_: str = Field(alias="from")
    method: Literal["copy", "threshold_balancing"] = "copy"
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.9


class Convert(Strict):
    """A trained ANN stage as spiking network, see :func:`spikedistill.convert`: the baseline of distillation."""

    from_: str = Field(alias="from")
    method: Literal["threshold_balancing", "qcfs", "signed"] = "threshold_balancing"
    percentile: Annotated[float, Field(gt=0, le=100)] | Literal["max"] = 99.9
    initial: Annotated[float, Field(ge=0, lt=1)] = 0.5
    levels: PositiveInt = 8


class Stage(Strict):
    """One training run; its product is a checkpoint and one row of the results table.

    Its network is made anew (``network``), goes on from another stage's (``from``), or is another stage's ANN converted
    (``convert``, which trains nothing unless ``epochs`` says so).

    ``recalibrate``: measure the norms' statistics anew before training; None: where the weights come from a spiking network
    with another T. ``settle``: measure them for each validation and for the finished network (auto: yes), so that they are
    those of the weights as they are. ``teacher``: a stage, a list of stages (of equal weight), or a mapping of stages to
    weights; ``teacher_heads``: copies of their classifiers learn beside the student (:class:`spikedistill.Distiller`).
    """

    name: str
    network: dict[str, Any] | None = None
    from_: str | None = Field(default=None, alias="from")
    convert: Convert | None = None
    init: Init | None = None
    teacher: str | list[str] | dict[str, float] | None = None
    teacher_heads: bool = False
    epochs: NonNegativeInt = 1
    time_steps: PositiveInt | None = None
    objectives: list[dict[str, Any]] = []
    optimizer: dict[str, Any] = {}
    quantize: dict[str, Any] | None = None
    accuracy_at: list[PositiveInt] = []
    recalibrate: bool | None = None
    settle: Literal["auto"] | bool = "auto"

    @property
    def teachers(self) -> dict[str, float] | None:
        """Weight of each teacher by its stage; None where there is none."""
        if self.teacher is None or isinstance(self.teacher, dict):
            return self.teacher
        names = [self.teacher] if isinstance(self.teacher, str) else self.teacher
        return {name: 1 / len(names) for name in names}

    @model_validator(mode="after")
    def _conversion_trains_nothing(self) -> "Stage":
        if self.convert is not None and "epochs" not in self.model_fields_set:
            self.epochs = 0
        return self


class Recipe(Strict):
    """Data, stages, hardware. ``paper``: keys of the citations beyond those of the objectives and networks used."""

    title: str = ""
    paper: list[str] = []
    data: DataConfig = DataConfig()
    time_steps: PositiveInt = 4
    seed: NonNegativeInt = 0
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
        raise SpikedistillError(f"the recipe has no stage {name!r}; {nearest(name, [s.name for s in self.stages])}")

    def optimizer_of(self, stage: Stage) -> Optimizer:
        """The recipe's optimizer with the stage's own words over it."""
        base = {k: v for k, v in self.optimizer.model_dump().items() if k in self.optimizer.model_fields_set}
        if "name" in stage.optimizer and stage.optimizer["name"] != self.optimizer.name:
            base = {}
        return Optimizer(**{**base, **stage.optimizer})

    def all_time_steps(self) -> list[int]:
        """Every T the recipe uses, longer simulations of objectives included."""
        found = {self.time_steps}
        for stage in self.stages:
            found |= {stage.time_steps or self.time_steps}
            found |= {int(o["time_steps"]) for o in stage.objectives if isinstance(o.get("time_steps"), int)}
        return sorted(found)

    def plain(self) -> dict[str, Any]:
        """As a mapping that YAML and JSON can hold, defaults that were not given left out."""
        return json.loads(self.model_dump_json(by_alias=True, exclude_unset=True))


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    return {
        Path(str(f)).stem: Path(str(f)) for f in files("spikedistill.recipes").iterdir() if f.name.endswith(".yaml")
    }


def load(
    source: "str | Path | Mapping[str, Any] | Recipe", overrides: Sequence[str] = (), custom: Iterable[str] = ()
) -> Recipe:
    """A checked recipe from a shipped name, a file, a mapping or a recipe, with ``path=value`` overrides.

    ``custom``: names of the caller's own networks. Raises :class:`SpikedistillError` naming file, path, what was found, what
    is allowed and the nearest known name.
    """
    if isinstance(source, Recipe):
        tree, where = source.plain(), ""
    elif isinstance(source, Mapping):
        tree, where = json.loads(json.dumps(dict(source))), ""
    else:
        path = locate(source)
        tree, where = read_yaml(path), f"{path.name if Path(str(source)).stem == str(source) else path}: "
    for override in overrides:
        apply_override(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise SpikedistillError(where + _words(error, tree)) from None
    try:
        check(recipe, custom)
    except SpikedistillError as error:
        raise SpikedistillError(where + str(error)) from None
    return recipe


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
    raise SpikedistillError(f"no shipped recipe and no file named {str(source)!r}; {nearest(str(source), known)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; an error names line and column."""
    tree = parse_yaml(read_text(path, MAX_YAML_BYTES), str(path))
    if not isinstance(tree, dict):
        raise SpikedistillError(f"{path}: a recipe is a mapping with `stages:`, found {type(tree).__name__}")
    return tree


def check(recipe: Recipe, custom: Iterable[str] = ()) -> None:
    """Everything that the types alone do not say: names that must exist, options of networks, objectives, quantizers."""
    custom = set(custom)
    if recipe.hardware:
        from .hardware.pricing import settings

        settings(("hardware", recipe.hardware))
    before: list[str] = []
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        if stage.name in RESERVED or stage.name in before or not stage.name.replace("-", "_").isidentifier():
            why = (
                "is taken"
                if stage.name in before
                else "is reserved"
                if stage.name in RESERVED
                else "is not a plain name"
            )
            raise SpikedistillError(f"{where}: the stage name {stage.name!r} {why}; choose another")
        for key, other in (
            ("from", stage.from_),
            *(("teacher", name) for name in stage.teachers or {}),
            ("init.from", stage.init.from_ if stage.init else None),
            ("convert.from", stage.convert.from_ if stage.convert else None),
        ):
            if other is not None and other not in before:
                raise SpikedistillError(f"{where}.{key}: no earlier stage {other!r}; {nearest(other, before)}")
        if sum(given is not None for given in (stage.network, stage.from_, stage.convert)) != 1:
            raise SpikedistillError(f"{where}: give exactly one of `network`, `from` and `convert`")
        if stage.convert is not None and stage.init is not None:
            raise SpikedistillError(f"{where}.init: a converted network has its weights already; leave `init` out")
        if stage.network is not None:
            check_network(stage.network, f"{where}.network", custom)
        _check_optimizer(recipe, stage, where)
        _check_objectives(stage, where)
        if stage.quantize is not None:
            _check_quantize(stage.quantize, f"{where}.quantize")
        before.append(stage.name)


def _check_quantize(given: Mapping[str, Any], where: str) -> None:
    from .quantization import quantize
    from .quantization.options import Options

    read = checked(quantize, given, where, ("network", "calibration"))
    defaults = {name: p.default for name, p in signature(quantize).parameters.items()}
    with at(where):
        Options(**{f.name: read.get(f.name, defaults[f.name]) for f in fields(Options)})


@contextmanager
def at(where: str) -> Iterator[None]:
    """Errors of what stands at ``where`` say so."""
    try:
        yield
    except SpikedistillError as error:
        raise SpikedistillError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _check_optimizer(recipe: Recipe, stage: Stage, where: str) -> None:
    for key in stage.optimizer:
        if key not in Optimizer.model_fields:
            raise SpikedistillError(f"{where}.optimizer: unknown key {key!r}; {nearest(key, Optimizer.model_fields)}")
    try:
        recipe.optimizer_of(stage)
    except ValidationError as error:
        first = error.errors()[0]
        raise SpikedistillError(
            f"{where}.optimizer.{first['loc'][0]}: found {first['input']!r}; {first['msg']}"
        ) from None


def _check_objectives(stage: Stage, where: str) -> None:
    built = []
    for i, options in enumerate(stage.objectives):
        with at(f"{where}.objectives[{i}]"):
            built.append(objectives.build(options, f"{where}.objectives[{i}]"))
    names = [o.name for o in built]
    with at(f"{where}.teacher"):
        if stage.teacher is not None and not stage.teachers:
            raise SpikedistillError("the list of teachers is empty; name at least one stage")
        if stage.teacher_heads and stage.teacher is None:
            raise SpikedistillError("teacher_heads needs a teacher; add `teacher: STAGE`")
    for objective in built:
        if names.count(objective.name) > 1:
            raise SpikedistillError(f"{where}.objectives: two are named {objective.name!r}; give one a `name`")
        if objective.needs_teacher and stage.teacher is None:
            raise SpikedistillError(f"{where}.objectives: {objective.name!r} needs a teacher; add `teacher: STAGE`")
    if stage.teachers:
        with at(f"{where}.objectives"):
            lessons(built, shares(list(stage.teachers), stage.teachers))


def check_network(options: Mapping[str, Any], where: str, custom: Iterable[str] = ()) -> None:
    """Name and options of a stage's network."""
    name = options.get("name")
    if not isinstance(name, str):
        raise SpikedistillError(
            f"{where}.name: found {name!r}; give one of `spikedistill.networks.names()`, timm:NAME, ..."
        )
    if name.startswith(("timm:", "torchvision:")):
        allowed = (set(signature(from_name).parameters) | set(NETWORK_KEYS)) - {"time_steps"}
        for key in options:
            if key not in allowed:
                raise SpikedistillError(f"{where}: network {name!r} has no option {key!r}; {nearest(key, allowed)}")
        return
    if name in custom or "/" in name or Path(name).is_dir():
        return
    if name not in networks.names():
        raise SpikedistillError(
            f"{where}.name: unknown network {name!r}; {nearest(name, [*networks.names(), *custom])} "
            "(or timm:NAME, torchvision:NAME, a folder)"
        )
    known = set(networks.options(name)) | set(NETWORK_KEYS)
    for key in options:
        if key not in known:
            raise SpikedistillError(f"{where}: network {name!r} has no option {key!r}; {nearest(key, known)}")
        if key in ("time_steps",):
            raise SpikedistillError(
                f"{where}.{key}: time steps belong to the stage (or the recipe), not to its network"
            )
    own = {key: value for key, value in options.items() if key in networks.options(name) and key != "neuron"}
    for key, value in checked(networks.BUILDERS[name], own, where, ("neuron",)).items():
        if isinstance(own[key], str) and not isinstance(value, str):
            raise SpikedistillError(f"{where}.{key}: found the text {own[key]!r}; write it without quotes")
    if options.get("neuron") is not None and isinstance(options["neuron"], Mapping):
        from .neurons import build

        with at(f"{where}.neuron"):
            build(options["neuron"])


def _words(error: ValidationError, tree: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    loc = _readable(first["loc"], tree)
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(loc[:-1]) or 'recipe'}: unknown key {loc[-1]!r}; {nearest(loc[-1], _keys_at(first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{'.'.join(loc)}: missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(loc)}: found {first['input']!r}; {message[0].lower()}{message[1:]}"


def _readable(loc: Sequence[int | str], tree: Mapping[str, Any]) -> list[str]:
    """The path with stages by name instead of number."""
    out: list[str] = []
    here: Any = tree
    for part in loc:
        here = (
            here[part]
            if isinstance(here, list) and isinstance(part, int) and part < len(here)
            else (here.get(part) if isinstance(here, dict) else None)
        )
        named = isinstance(part, int) and isinstance(here, dict) and here.get("name")
        out.append(str(named or part))
    return out


def _keys_at(loc: Sequence[int | str]) -> list[str]:
    model: Any = Recipe
    for part in loc:
        if isinstance(part, int) or not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        field = model.model_fields.get(str(part)) or next(
            (f for f in model.model_fields.values() if f.alias == part), None
        )
        model = _model_in(field.annotation) if field is not None else None
    if model is None:
        return []
    return [f.alias or name for name, f in model.model_fields.items()]


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def schema() -> dict[str, Any]:
    """JSON schema of a recipe for editors: networks, objectives and quantizers spelled out."""
    from .quantization import quantize
    from .typed import model_of

    tree = Recipe.model_json_schema(by_alias=True)
    defs = tree.setdefault("$defs", {})
    kinds = []
    for kind, cls in objectives.TYPES.items():
        one = model_of(cls).model_json_schema()  # type: ignore[arg-type]
        defs.update(one.pop("$defs", {}))
        one["properties"]["type"] = {"const": kind}
        one["required"] = ["type", *one.get("required", [])]
        one["description"] = (cls.__doc__ or "").strip().splitlines()[0]
        defs[f"objective_{kind}"] = one
        kinds.append({"$ref": f"#/$defs/objective_{kind}"})
    stage = defs["Stage"]["properties"]
    stage["objectives"]["items"] = {"oneOf": kinds}
    stage["optimizer"] = {"$ref": "#/$defs/Optimizer"}
    options = model_of(quantize, ("network", "calibration")).model_json_schema()
    defs.update(options.pop("$defs", {}))
    stage["quantize"] = {"anyOf": [options, {"type": "null"}]}
    names = {"enum": networks.names()}
    stage["network"] = {
        "anyOf": [
            {"type": "object", "required": ["name"], "properties": {"name": {"anyOf": [names, {"type": "string"}]}}},
            {"type": "null"},
        ]
    }
    return tree
