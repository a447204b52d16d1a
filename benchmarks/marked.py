"""Parts of a page that a command makes, between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""


def between(text: str, name: str, lines: list[str]) -> str:
    """The page with what is between the marks of that name made anew."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin, 1)
    return "\n".join([f"{before}{begin}", *lines, f"{end}{rest.split(end, 1)[1]}"])
