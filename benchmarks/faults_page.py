"""Generates the table of docs/explanation/faults.md from faults.json.

python benchmarks/faults_page.py           writes it into the page, between its markers
python benchmarks/faults_page.py --quick   prints it
"""

import argparse
from pathlib import Path
from typing import Any

from faults import PARTS, stored
from losses_page import replace_between, table

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "faults.md"
HEAD = ["what", "promise", "cases", "outcomes", "promise broken", "command"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="print the table, and write nothing")
    if arguments.parse_args().quick:
        print(figures(stored()))
        return
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_between(text, "figures", figures(stored())), encoding="utf-8")


def figures(rows: dict[str, Any]) -> str:
    """Return the table of all parts that are measured."""
    return table(HEAD, [_line(name, rows[name]) for name in PARTS if name in rows])


def _line(name: str, row: dict[str, Any]) -> list[str]:
    part = PARTS[name]
    cases = f"{row['cases']:,}" + ("" if row["cases"] == row["of"] else f" of {row['of']:,}")
    outcomes = [f"{count:,} {outcome}" for outcome, count in row["outcomes"].items()]
    if row["seconds"]:
        outcomes.append(f"at most {row['seconds']} s, {row['megabytes']} MB")
    return [part.TITLE, part.PROMISE, cases, ", ".join(outcomes), str(len(row["failures"])), f"`--only {name}`"]


if __name__ == "__main__":
    main()
