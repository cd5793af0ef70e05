"""python -m pybatch: the command."""

from pybatch.cli import main

if __name__ == "__main__":
    main()
