"""Run every benchmark in its quick form: `python -m benchmarks`."""

from benchmarks import attention, kmeans, scores

if __name__ == "__main__":
    for benchmark in (attention, kmeans, scores):
        benchmark.main(quick=True)
