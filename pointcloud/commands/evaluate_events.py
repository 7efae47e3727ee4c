"""The command `evaluate events`: a network's accuracy on recordings that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pointcloud.commands.options import Device, Threads, check_seed, find_device, one_line_errors, set_threads


def evaluate_events(
    model: Annotated[str, typer.Argument(help="name of a shipped model, or a .safetensors file")] = "spikepoint-tiny",
    output: Annotated[Path, typer.Option(help="folder of the written files")] = Path("evaluation"),
    recordings: Annotated[int, typer.Option(min=1, help="how many evaluation recordings")] = 200,
    spikes: Annotated[bool, typer.Option("--spikes", help="run on spikes of 0 and 1 in place of integers")] = False,
    seed: Annotated[int, typer.Option(min=0, help="of the spikes that rate coding draws")] = 0,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Print the accuracy of each class; write it as JSON with the confusion of classes as PNG."""
    with one_line_errors():
        check_seed(seed)
        from pointcloud.nn import unroll
        from pointcloud.spikepoint.evaluation import evaluate, write_results
        from pointcloud.spikepoint.shipped import load_events_network

        set_threads(threads)
        place = find_device(device)
        network = load_events_network(model).to(place)
        if spikes and not network.config.spiking:
            raise ValueError(f"{model} does not spike; leave --spikes out, or give a network that does")
        if spikes and network.on_integers:
            unroll(network)
        result = evaluate(network, recordings, seed, lambda line: print(line, flush=True))
        for name, recall in result.recalls.items():
            typer.echo(f"{name}: no windows" if recall is None else f"{name}: {recall:.1%} found")
        typer.echo(f"all: {result.accuracy:.1%} right, {result.nanojoules:,.0f} nJ a window")
        for file in write_results(result, output, model=model, recordings=recordings, seed=seed, spikes=spikes):
            typer.echo(f"wrote {file}")
