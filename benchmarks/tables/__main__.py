"""Writes the tables and plots of the documentation from benchmarks/results."""

from benchmarks.tables import main

if __name__ == "__main__":
    main()
