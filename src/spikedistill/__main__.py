"""``python -m spikedistill``: the command line, as launchers of several processes start it."""

from .cli import script

if __name__ == "__main__":
    script()
