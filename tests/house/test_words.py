"""The project speaks of itself only: no machine's paths, no registry's hosts, nothing of how it came to be."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOREIGN = re.compile(  # a letter in brackets each, so that this file does not find itself
    r"/wor[k]/|/roo[t]/|/hom[e]/\w|\bissu[e] ?#|\bissu[e] \d|/opt/wheel[s]|pyp[i]\.org|pythonhoste[d]", re.IGNORECASE
)


def test_no_file_speaks_of_another_place(project_files):
    found = []
    for name in project_files:
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        found += [
            f"{name}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if FOREIGN.search(line)
        ]
    assert not found
