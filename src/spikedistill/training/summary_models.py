"""The documents of ``summary.json``, typed: a run's and that over seeds."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT = 1


Fraction = Annotated[float, Field(ge=0, le=1)]


class Model(BaseModel):
    """A part of the file: unknown keys are refused, NaN and infinity are written as strings (valid JSON)."""

    model_config = ConfigDict(
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        ser_json_inf_nan="strings",
    )


class Bits(Model):
    """Bits of weights, stored membranes and norm coefficients of a quantized network."""

    weight: int
    membrane: int
    norm: int


class Best(Model):
    """The epoch (counted from 1) whose validation accuracy was highest, and that accuracy."""

    epoch: int
    validation_accuracy: Fraction


class LayerSummary(Model):
    """One layer of neurons: spikes per neuron and step on the test set, number of neurons per image."""

    path: str
    firing_rate: float
    neurons: int
    warning: Literal["dead", "saturated"] | None = None


class MembraneSummary(Model):
    """Histogram of the charged membrane H of one layer: B + 1 ``edges`` in thresholds, B counts each."""

    path: str
    edges: list[float]
    student: list[int]
    teacher: list[int] | None = None

    @model_validator(mode="after")
    def _lengths(self) -> "MembraneSummary":
        for counts in (self.student, self.teacher):
            if counts is not None and len(counts) != len(self.edges) - 1:
                raise ValueError(
                    f"{self.path}: {len(self.edges)} edges need {len(self.edges) - 1} counts, "
                    f"{len(counts)} given"
                )
        return self


class IntegerSummary(Model):
    """The integer network beside the fake-quantized: whether predictions agree, on how many images, size."""

    equal_predictions: bool
    images: int
    bytes: int


class StepTime(Model):
    """Where one training step's time goes, in seconds (means over the stage)."""

    data: float = 0.0
    teacher: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0


class StageFacts(Model):
    """What a stage is, the same for every seed."""

    name: str
    kind: Literal["ann", "snn"]
    network: dict[str, Any]
    parameters: int
    time_steps: int | None = None
    convert: dict[str, Any] | None = None
    bits: Bits | None = None
    warnings: list[str] = []


class StageSummary(StageFacts):
    """One finished stage; accuracies are fractions in [0, 1] on the test set unless named otherwise."""

    epochs: int
    seconds: float
    from_: str | None = Field(default=None, alias="from")
    teacher: str | None = None
    init: dict[str, Any] | None = None
    objectives: list[dict[str, Any]] = []
    accuracy: Fraction
    validation_accuracy: Fraction | None = None
    best: Best | None = None
    accuracy_at: dict[int, Fraction] = {}
    recalibrated_at: dict[int, Fraction] = {}
    firing_rate: float | None = None
    layers: list[LayerSummary] = []
    synaptic_operations: float | None = None
    operations_aim: float | None = None
    macs: float | None = None
    energy_pj: float | None = None
    confusion: list[list[int]] | None = None
    membranes: list[MembraneSummary] | None = None
    hardware: dict[str, Any] | None = None
    integer: IntegerSummary | None = None
    peak_memory_mb: float | None = None
    images_per_second: float | None = None
    step_time: StepTime | None = None


class RunSummary(Model):
    """One run: one recipe, one seed."""

    kind: Literal["run"] = "run"
    format: Literal[1] = 1
    title: str
    recipe: str
    seed: int
    environment: dict[str, Any] = {}
    data: dict[str, Any] = {}
    citations: list[str] = []
    stages: list[StageSummary] = []
    warnings: list[str] = []

    @property
    def seeds(self) -> list[int]:
        """Its seed, as the one of a list, so that a run reads as several do."""
        return [self.seed]

    def stage(self, name: str) -> StageSummary:
        """The stage of that name; raises ``KeyError``."""
        return {stage.name: stage for stage in self.stages}[name]


class Spread(Model):
    """One figure over seeds: mean, sample standard deviation (n - 1; null for one seed), values by seed."""

    mean: float
    std: float | None = None
    values: list[float]


class StageSpread(StageFacts):
    """One stage over seeds; ``figures``: spreads by field of :class:`StageSummary` or ``hardware.<path>``."""

    figures: dict[str, Spread]


class Difference(Model):
    r"""``stage`` minus ``baseline``, seed by seed: d_i = x_i - y_i.

    The 95 % interval is ``mean(d) ± t(0.975, n-1) * std(d) / sqrt(n)`` (Student's t for paired samples); null
    for one seed.
    """

    figure: str
    stage: str
    baseline: str
    mean: float
    low: float | None = None
    high: float | None = None
    values: list[float]


class MultiSummary(Model):
    """One recipe over several seeds; the single runs lie beside it in ``seed-N`` folders."""

    kind: Literal["seeds"] = "seeds"
    format: Literal[1] = 1
    title: str
    recipe: str
    seeds: list[int]
    environment: dict[str, Any] = {}
    data: dict[str, Any] = {}
    citations: list[str] = []
    stages: list[StageSpread] = []
    differences: list[Difference] = []
    warnings: list[str] = []

    def stage(self, name: str) -> StageSpread:
        """The stage of that name; raises ``KeyError``."""
        return {stage.name: stage for stage in self.stages}[name]
