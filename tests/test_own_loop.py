import runpy
from pathlib import Path


def test_own_loop_learns(capsys):
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "own_loop.py"))
    assert example["main"](epochs=3) > 0.6
    assert "blurred_feature" in capsys.readouterr().out
