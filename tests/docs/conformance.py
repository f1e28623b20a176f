"""Writes docs/conformance.md: one row per clause, with the tests that check it.

    python tests/docs/conformance.py          # write the page
    python tests/docs/conformance.py --empty  # clauses that no test names

A test checks a clause when it says so: in its name (`test_r194_…`), its docstring, the docstring
of its class, or a comment in its body. Ranges (`R-154 to R-156`) count for every number in them.
What a module says of itself does not count: it names a field, not a check.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from clauses import CLAUSES, DECIDED, NOT_BUILT, SECTIONS

ROOT: Final = Path(__file__).parent.parent.parent
PAGE: Final = ROOT / "docs" / "conformance.md"
_SAID: Final = re.compile(r"R-(\d{3})(?:(?:\s+to\s+|\s*-\s*)R-(\d{3}))?")
_NAMED: Final = re.compile(r"_r(\d{3})(?=_)")

HEAD: Final = """\
# Conformance

What a chat agent promises, clause by clause, and the tests that check it. The numbers R-001 to
R-263 are those of the behavioural specification this project is built to.

**How to read it.** A row is a clause: its number, the promise in one line, and the tests that would
fail if it were broken, by file, each named as the sentence it shows. *Words in italics* say where we
keep a clause in another form than the original, or why there is no test. To go from a number to its
tests in the tree, search for `R-123` or `r123`.

This page is generated: `make conformance` writes it, and a test compares it.
"""
INDEX: Final = """\
| chapter | clauses | how many | in a form of our own | tests |
|---|---|---|---|---|
"""


def clauses_in(text: str) -> Iterator[int]:
    """Every clause number that a text names."""
    for first, last in _SAID.findall(text):
        yield from range(int(first), int(last or first) + 1)


def tests_of(path: Path) -> Iterator[tuple[str, str, set[int]]]:
    """`(class or "", test, clauses)` of every test in a file."""
    source = path.read_text()
    lines = source.splitlines()
    for node in ast.parse(source).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        shared = set(clauses_in(ast.get_docstring(node) or "")) if inner != [node] else set()
        for test in inner:
            if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not test.name.startswith("test"):
                continue
            start = min([test.lineno, *(d.lineno for d in test.decorator_list)])
            body = "\n".join(lines[start - 1 : test.end_lineno])
            named = {int(n) for n in _NAMED.findall(test.name)}
            owner = node.name if isinstance(node, ast.ClassDef) else ""
            yield owner, test.name, shared | named | set(clauses_in(body))


def checked() -> dict[int, list[tuple[Path, str]]]:
    """By clause: the tests that check it, in the order of their files."""
    found: dict[int, list[tuple[Path, str]]] = {number: [] for number in CLAUSES}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for owner, name, numbers in tests_of(path):
            if path == Path(__file__).parent / "test_conformance.py":
                continue
            for number in numbers:
                if number in found:
                    label = f"{owner}::{name}" if owner else name
                    found[number].append((path.relative_to(ROOT), label))
    return found


def sentence(label: str) -> str:
    """A test's name as the sentence it is."""
    name = label.rpartition("::")[2].removeprefix("test_")
    return _NAMED.sub("", f"_{name}").strip("_").replace("_", " ")


def chapters() -> Iterator[tuple[str, range]]:
    """`(title, clauses)` of every chapter."""
    starts = [*SECTIONS, len(CLAUSES) + 1]
    for first, after in pairwise(starts):
        yield SECTIONS[first], range(first, after)


def anchor(title: str) -> str:
    """Where a heading of that title is found on its page."""
    return re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")


def index(tests: dict[int, list[tuple[Path, str]]]) -> str:
    """The table of chapters, with a row for all of them together."""
    rows = []
    for title, numbers in [*chapters(), ("", range(1, len(CLAUSES) + 1))]:
        shown = f"[{title}](#{anchor(title)})" if title else "all"
        ours = sum(number in DECIDED for number in numbers)
        count = len({test for number in numbers for test in tests[number]})
        span = f"R-{numbers[0]:03} to R-{numbers[-1]:03}"
        rows.append(f"| {shown} | {span} | {len(numbers)} | {ours or ''} | {count} |")
    return INDEX + "\n".join(rows)


def page() -> str:
    """The whole page."""
    tests = checked()
    out = [HEAD, index(tests)]
    for number, text in CLAUSES.items():
        if number in SECTIONS:
            out.append(
                f"\n## {SECTIONS[number]}\n\n| clause | promise | checked by |\n|---|---|---|"
            )
        names: dict[Path, list[str]] = {}
        for path, label in tests[number]:
            names.setdefault(path, []).append(sentence(label))
        cells = [f"[{path.stem}](../{path}): {'; '.join(said)}" for path, said in names.items()]
        if number in NOT_BUILT:
            cells.append(f"*{NOT_BUILT[number]}*")
        if number in DECIDED:
            text = f"{text} *{DECIDED[number]}*"
        out.append(f"| R-{number:03} | {text} | {'<br>'.join(cells)} |")
    return "\n".join(out) + "\n"


def main() -> None:
    if "--empty" in sys.argv:
        empty = [n for n, tests in checked().items() if not tests]
        print(" ".join(f"R-{n:03}" for n in empty))
        return
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
