"""`python -m neoplug`: the command line, also for launchers that start modules, as torchrun's `-m`."""

from neoplug.cli import main

if __name__ == "__main__":
    main()
