"""``python -m hpcopt``: the command line, where its script is not on the path."""

from hpcopt.cli import main

if __name__ == "__main__":
    main()
