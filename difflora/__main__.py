"""`python -m difflora`: the command line, where the console script is not on the path."""

from difflora.cli import main

if __name__ == "__main__":
    main()
