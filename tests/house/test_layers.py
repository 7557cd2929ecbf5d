"""The import contracts in pyproject.toml, and the table of layers in the docs that repeats them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"


def test_every_import_contract_is_kept(tmp_path):
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--cache-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_table_of_layers_in_the_docs_equals_the_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (contract for contract in settings["contracts"] if contract["type"] == "layers")
    layers = [re.split(r" *[|:] *", layer) for layer in contract["layers"]]
    assert [sorted(row) for row in rows()] == [sorted(layer) for layer in layers if layer != ["__main__"]]


def rows():
    """Yield the modules of each row of the table, top down."""
    table = PAGE.read_text(encoding="utf-8").partition("\n| layer |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield re.findall(r"`(\w+)`", line.split("|")[1])
