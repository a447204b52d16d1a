"""What ``spikedistill hardware`` does: price a run or a layer file, set runs against each other."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import terminal
from ..errors import SpikedistillError

Tree = dict[str, Any]


def hardware_command(
    run: str | None,
    layers: Path | None,
    config: Path | None,
    against: Sequence[str],
    iso_accuracy: bool,
    layers_out: Path | None,
    as_json: bool,
) -> int:
    """Print the price; status 2 if a figure has no value (the published code's limits in released mode)."""
    from .. import hardware
    from ..hardware.show import ratios_table, show

    if (run is None) == (layers is None):
        raise SpikedistillError("give a RUN or --layers FILE (one of them)")
    if iso_accuracy and not against:
        raise SpikedistillError(
            "--iso-accuracy chooses among runs to divide by; give some with --against RUN"
        )
    if layers is not None:
        if against or layers_out or iso_accuracy:
            raise SpikedistillError("--against, --iso-accuracy and --layers-out need a RUN, not a layer file")
        tree, accuracy = hardware.price_file(layers, config), None
    else:
        assert run is not None
        tree, accuracy = _price_run(run, config, layers_out)
    ratios: Tree = {}
    others = [(name, *_price_run(name, config, None)) for name in against]
    if iso_accuracy:
        assert accuracy is not None
        reaching = hardware.iso_accuracy(accuracy, [(name, a or 0.0, other) for name, other, a in others])
        others = [item for item in others if item[0] == reaching[0]]
    for name, other, _ in others:
        ratios[name] = hardware.against(tree, other)
    if as_json:
        print(json.dumps({**tree, "accuracy": accuracy, **({"against": ratios} if ratios else {})}))
    else:
        show(tree)
        if ratios:
            words = "ratio = this run / the other: below 1 this one needs less (TOPS figures: gives less)"
            terminal.show("", ratios_table(ratios), words)
    return 2 if tree.get("reasons") else 0


def _price_run(run: str, config: Path | None, layers_out: Path | None) -> tuple[Tree, float]:
    from .. import hardware
    from ..files import destination, exported
    from ..hardware.floorline import FloorlineConfig
    from ..hardware.pricing import headline, settings
    from ..training.reevaluate import open_run
    from ..training.stage_measures import PRICED_IMAGES
    from ..training.summary import StageSummary
    from ..typed import parse

    # First: counting on images takes a while, and a folder that is not there should show before.
    target = None if layers_out is None else destination(layers_out)
    place, recipe, data, network = open_run(run)
    x, _ = next(iter(data.batches("test", PRICED_IMAGES)))
    found = hardware.layers(network, x)
    over = {"spikesim": hardware.read_config(config)} if config else None
    chip, memory = settings(("recipe", recipe.hardware), (str(config), over))
    if target is not None:
        with exported(target) as temporary:
            hardware.write_layers(found, temporary, chip)
    row = StageSummary.model_validate_json((place / "summary.json").read_text())
    floor = parse(FloorlineConfig, recipe.hardware.get("floorline") or {}, "recipe: floorline")
    priced = hardware.price(found, chip, memory, floor, recipe.hardware.get("chips"))
    return headline(priced, chip.activity), row.accuracy
