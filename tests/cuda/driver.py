"""A process with a pretended GPU that runs recipes, one after the other: imports take seconds, a tiny run less.

    python -m tests.cuda.driver LIBRARY

reads a line of JSON for each run from stdin and writes one to stdout: the error, if there is one, and the events.
"""

import json
import os
import sys
import traceback
from contextlib import nullcontext
from importlib import import_module

from tests.cuda import library

# These look for a GPU when they are imported, and for its libraries if there is one: imported before one is pretended.
IMPORTED = ("accelerate", "bitsandbytes", "datasets", "peft", "torch._dynamo", "torch._inductor.utils")


def main():
    """Answer lines until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runs print is for the log
    library.load(sys.argv[1])
    for package in IMPORTED:
        import_module(package)
    for line in sys.stdin:
        answers.write(json.dumps(answer(**json.loads(line))) + "\n")
        answers.flush()


def answer(recipe, output, fault=None):
    """Run a recipe on the pretended device, with a planted fault if one is named."""
    import neoplug
    from tests.cuda import waits
    from tests.cuda.faults import planted
    from tests.cuda.patches import pretended_gpu

    error = None
    waits.events.clear()
    with pretended_gpu(), planted(**fault) if fault else nullcontext():
        try:
            neoplug.run(recipe, output=output)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
            traceback.print_exc()
    return {"error": error, "events": [[*event, count] for event, count in waits.events.items()]}


if __name__ == "__main__":
    main()
