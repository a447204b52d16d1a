"""Write cites.json anew: the papers of each shipped recipe, so that `spikedistill cite` need not build it."""

import json
from pathlib import Path

from spikedistill.bibliography import keys_of
from spikedistill.recipe import load
from spikedistill.recipes import CITES, shipped

if __name__ == "__main__":
    keys = {name: keys_of(load(name)) for name in sorted(shipped())}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(found)}" for name, found in keys.items())
    Path(__file__).with_name(CITES).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
