"""The contracts in pyproject.toml: layers, a core that knows no plugin, plugins without a back door."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_import_contract_is_kept(tmp_path):
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--cache-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
