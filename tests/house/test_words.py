"""No file has paths of a machine, hosts of a registry, or numbers of issues."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOREIGN = re.compile(  # a letter in brackets each, so that this file does not find itself
    r"/wor[k]/|/roo[t]/|/hom[e]/\w|\bissu[e] ?#|\bissu[e] \d|/opt/wheel[s]|pyp[i]\.org|pythonhoste[d]", re.IGNORECASE
)


def test_no_file_names_paths_hosts_or_issues(project_files):
    found = []
    for name in project_files:
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        found += [
            f"{name}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if FOREIGN.search(line)
        ]
    assert not found
