"""`python -m neoplug`: the command line, also for launchers that start a module (`torchrun -m neoplug`)."""

import sys

if __name__ == "__main__":
    # Python puts the current folder first: a file there must not be imported in place of a library or as a plugin.
    if not sys.flags.safe_path:
        del sys.path[0]

    from neoplug.cli import main

    main()
