"""`python -m deconfound` is `deconfound`."""

from deconfound.cli import main

if __name__ == "__main__":
    main()
