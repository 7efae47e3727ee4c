"""Run every benchmark in its quick form: `python -m benchmarks`."""

import typer

from benchmarks import attention, dsvt, kmeans, points, scores, sparse_conv, spike_conv, spiking_networks


def main() -> None:
    """Run every benchmark in its quick form on the CPU, some minutes on two cores; each alone has more options.

    They are `python -m benchmarks.attention`, `.kmeans`, `.scores`, `.points`, `.sparse_conv`, `.spike_conv`,
    `.spiking_networks`, `.dsvt`; `.pipeline` and `.sparse_networks` take longer and are run alone.
    """
    for benchmark in (attention, kmeans, scores, points, sparse_conv, spike_conv, spiking_networks, dsvt):
        typer.echo(benchmark.__doc__)
        benchmark.main(quick=True)


if __name__ == "__main__":
    typer.run(main)
