"""`python -m everturn` is the `everturn` command."""

from everturn.cli import main

if __name__ == "__main__":
    main()
