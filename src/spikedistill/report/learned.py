"""The page's part on teacher and student, and on single neurons: from the observations of each stage."""

from collections.abc import Sequence

from ..terminal import amount
from ..training.observations import Activity, Bin, Drawn, Observations, Trace
from ..training.summary import spread
from . import closeups
from .parts import Figure, Group, Section, Study, Table
from .table import percent


def section(study: Study) -> Section | None:
    """Agreement, calibration, and layers beside the teacher's; None where nothing was observed."""
    seen = {name: found for name in study.names if (found := study.observations(name))}
    if not seen:
        return None
    images = next(iter(seen.values()))[0].student.images
    figures = [_calibration(study, seen)]
    figures += [_layers(study, name, found[0]) for name, found in seen.items() if found[0].likeness]
    return Section(
        "teacher",
        "Student and teacher",
        f"On {amount(images, 'test image')}{' a seed' if len(study.runs) > 1 else ''}; what a layer does, on "
        "the first 64.",
        tables=[_table(study, seen)],
        groups=[Group(figures)],
    )


SHARES = ("equal", "both", "only_student", "only_teacher", "neither")
HEADINGS = (
    "Stage", "Calibration error [%]", "Teacher", "Equal predictions [%]", "Both right [%]",
    "Only student [%]", "Only teacher [%]", "Neither [%]", "KL [nats]",
)  # fmt: skip


def _table(study: Study, seen: dict[str, list[Observations]]) -> Table:
    """A row a stage; without any teacher the calibration alone."""
    made, taught = [], False
    for name, found in seen.items():
        row = [name, percent(spread([one.student.error for one in found]))]
        if pairs := [one.agreement for one in found if one.agreement]:
            shares = [percent(spread([getattr(pair, key) for pair in pairs])) for key in SHARES]
            row += [
                study.teacher(name),
                *shares,
                f"{sum(pair.divergence for pair in pairs) / len(pairs):.3f}",
            ]
            taught = True
        made.append([*row, *["–"] * (len(HEADINGS) - len(row))])
    caption = (
        "Calibration error: how far confidence and accuracy lie apart, mean over images (ECE, ten bins)."
    )
    if taught:
        caption += (
            " Equal predictions: the same class as the teacher's. KL: of the teacher's probabilities to "
            "the student's, mean over images."
        )
    colours = [study.colour(row[0]) for row in made]
    end = len(HEADINGS) if taught else 2
    return Table(HEADINGS[:end], [row[:end] for row in made], caption, colours)


def _calibration(study: Study, seen: dict[str, list[Observations]]) -> Figure:
    together = {name: pooled([one.student.calibration for one in found]) for name, found in seen.items()}
    text = (
        "Calibration: accuracy by confidence, the largest probability; on the dashed line they are equal, "
        "below it a network is too sure. Larger dots are more images."
    )
    rows: list[Sequence[object]] = [("stage", "bin", "images", "confidence", "accuracy")]
    rows += [
        (name, k, one.images, one.confidence, one.accuracy)
        for name, bins in together.items()
        for k, one in enumerate(bins)
        if one.images
    ]
    svg = closeups.calibration([(study.colour(name), bins) for name, bins in together.items()], text)
    return Figure(svg, text, [(name, study.colour(name), "dot") for name in together], rows, "calibration")


def pooled(each: Sequence[Sequence[Bin]]) -> list[Bin]:
    """Bins of several seeds as one."""
    made = []
    for bins in zip(*each):
        images = sum(one.images for one in bins)
        mean = [
            sum(one.images * getattr(one, key) for one in bins) / max(images, 1)
            for key in ("confidence", "accuracy")
        ]
        made.append(Bin(images=images, confidence=mean[0], accuracy=mean[1]))
    return made


def beside(found: Observations) -> list[tuple[Activity, float]]:
    """For each student layer the teacher's of the same path, else the most like it, and how like they are."""
    places = {one.path: k for k, one in enumerate(found.teacher_layers)}
    best = []
    for mine, row in zip(found.layers, found.likeness):
        k = places.get(mine.path, max(range(len(row)), key=row.__getitem__))
        best.append((found.teacher_layers[k], row[k]))
    return best


def _layers(study: Study, name: str, found: Observations) -> Figure:
    teacher = study.teacher(name)
    pairs = beside(found)
    text = (
        f"{name} and {teacher}, layer by layer: values that are not zero (of a spiking network spikes per "
        "neuron and step), and at the right how like their features are (linear CKA: 1 the same, 0 "
        "unrelated). "
    )
    text += "Beside each layer the teacher's of the same name, else the one most like it."
    text += f" Seed {study.seeds[0]}." if len(study.runs) > 1 else ""
    rows: list[Sequence[object]] = [("layer", "share", "teacher layer", "teacher share", "CKA")]
    rows += [
        (mine.path, mine.share, theirs.path, theirs.share, like)
        for mine, (theirs, like) in zip(found.layers, pairs)
    ]
    colours = (study.colour(name), study.colour(teacher))
    svg = closeups.layers(found.layers, pairs, colours, text)
    legend = [(name, colours[0], "box"), (teacher, colours[1], "box")]
    return Figure(svg, text, legend, rows, f"layers-{name}")


def neurons(study: Study) -> list[Group]:
    """Spikes and membranes of a few images, a group a stage; all but the last stage's are folded away."""
    drawn = {
        name: found[0].drawn for name in study.names if (found := study.observations(name)) and found[0].drawn
    }
    groups = []
    for name, images in drawn.items():
        colour = study.colour(name)
        of = f" of seed {study.seeds[0]}" if len(study.runs) > 1 else ""
        text = (
            f"Spikes{of} on {amount(len(images), 'test image')}: up to {amount(_most(images), 'neuron')} "
            "a layer, evenly spread, one a line. Class 3 → 5: of class 3, taken for 5."
        )
        rows: list[Sequence[object]] = [
            ("image", "class", "predicted", "layer", "neuron", "step", "membrane", "spike")
        ]
        rows += [
            (one.image, one.target, one.prediction, layer.path, neuron, t + 1, h, spike)
            for one in images
            for layer in one.layers
            for neuron, spikes, values in zip(layer.neurons, layer.spikes, layer.membranes)
            for t, (spike, h) in enumerate(zip(spikes, values))
        ]
        spikes = Figure(closeups.raster(images, colour, text), text, (), rows, f"spikes-{name}")
        text = (
            f"Charged membranes H{of}, in thresholds, of up to {closeups.TRACED} neurons a layer on the "
            f"image of class {images[0].target}: the threshold is dotted, dots are spikes."
        )
        kept = [
            row
            for row in rows[1:]
            if row[0] == images[0].image and row[4] in _traced(images[0].layers, str(row[3]))
        ]
        traces = Figure(
            closeups.traces(images[0], colour, text), text, (), [rows[0], *kept], f"membranes-{name}"
        )
        last = name == list(drawn)[-1]
        groups.append(Group([spikes, traces], f"Neurons of {name}", colour=colour, folded=not last))
    # The last stage's first: it is the one that is not folded away.
    return groups[::-1]


def _traced(layers: Sequence[Trace], path: str) -> list[int]:
    layer = next(one for one in layers if one.path == path)
    return [layer.neurons[n] for n in closeups.lively(layer.spikes)]


def _most(images: Sequence[Drawn]) -> int:
    """The most neurons of a layer that are drawn."""
    return max(len(layer.neurons) for one in images for layer in one.layers)
