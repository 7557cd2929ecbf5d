"""`python -m neoplug`: the command line, also for launchers that start a module (`torchrun -m neoplug`)."""

from neoplug.cli import main

if __name__ == "__main__":
    main()
