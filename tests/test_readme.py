import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    names: dict = {}
    exec(code, names)
    assert names["losses"].total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in names["student"].parameters())
    assert any(p.grad is not None for p in names["student"].parameters())


def test_linked_pages_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert link.startswith("http") or (README.parent / link).exists(), link


def test_its_length_is_read():
    assert 80 <= len(README.read_text().splitlines()) <= 150
