"""Draw what share of the ideal speed-up 1/density attention reaches, from rows of `benchmarks.attention`."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def curve_name(row: dict[str, Any]) -> str:
    """Return what tells a row's curve from the others."""
    kind = "FlexAttention" if row["backend"] == "flex" else "ours"
    number = row["precision"] or row["dtype"]
    return f"{kind}, {number}, head_dim {row['head_dim']}, blocks {row['blocks']}, {row['seq']:,} tokens"


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Return the figure, a curve for each kernel and shape."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["blocks"] is None:  # a dense peer
            continue
        curves[curve_name(row)].append((row["density"], row["fraction_of_ideal"]))
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        style = "--" if name.startswith("Flex") else "-"
        axes.plot(*zip(*sorted(points), strict=True), style, marker="o", markersize=4, label=name)
    axes.axhline(1, color="0.7", zorder=0)
    axes.set(xlabel="density", ylabel="fraction of the ideal speed-up 1/density", ylim=(0, None))
    axes.set_title(f"{rows[0]['device']}, {rows[0]['threads']} threads; dense: the fastest there", fontsize=10)
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    return figure


def main(
    files: Annotated[list[Path], typer.Argument(help="JSON files of benchmarks.attention")],
    output: Annotated[Path, typer.Option(help="PNG to write")] = Path("fraction_of_ideal.png"),
) -> None:
    """Write the picture."""
    rows = [row for file in files for row in json.loads(file.read_text())]
    temporary = output.with_name(output.name + ".tmp")
    with temporary.open("wb") as stream:
        FigureCanvasAgg(draw(rows)).print_png(stream)
    os.replace(temporary, output)
    typer.echo(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
