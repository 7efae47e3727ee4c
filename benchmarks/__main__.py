"""Run every benchmark in its quick form: `python -m benchmarks`."""

from benchmarks.attention import main

if __name__ == "__main__":
    main(quick=True)
