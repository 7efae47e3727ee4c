"""Generate the held-out prompts densely and sparsely, judge every video, and say which targets are met."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import imageio.v3 as imageio
import numpy as np
import typer
from jaxtyping import Float
from rich.console import Console
from rich.progress import track

from accel.errors import InputError
from accel.files import check_writable
from accel.methods import registry
from accel.workbench.generation import Generation, generate
from accel.workbench.loading import LoadedPipeline, load_pipeline
from accel.workbench.metrics import psnr, ssim
from accel.workbench.their_caches import Cache, digest_of, from_text
from demos.shapes_wan.contact_sheet import strip, write_contact_sheet
from demos.shapes_wan.judge import judge
from demos.shapes_wan.results import WAYS, Results
from demos.shapes_wan.scenes import Scene, held_out_scenes

SHEET_PROMPTS = 12
FACTS = "seed", "seconds", "density", "recall", "blocks_computed"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What is judged beside dense: a method, a cache or both; nothing of both is dense alone."""

    method: Any | None = None
    cache: Cache | None = None

    def __bool__(self) -> bool:
        return self.method is not None or self.cache is not None


def evaluate_scene(
    loaded: LoadedPipeline, chosen: Chosen, scene: Scene, seed: int, steps: int | None
) -> dict[str, tuple[dict[str, Any], Float[np.ndarray, "t h w 3"]]]:
    """Make the scene's video densely, and in the chosen way if there is one; return each way's result and frames."""
    dense = generate(loaded, scene.caption, None, seed=seed, steps=steps)
    made = {"dense": (_result(dense, scene), dense.frames)}
    if chosen:
        sparse = generate(loaded, scene.caption, chosen.method, cache=chosen.cache, seed=seed, steps=steps)
        likeness = {"psnr_db": psnr(sparse.frames, dense.frames), "ssim": ssim(sparse.frames, dense.frames)}
        made["sparse"] = (_result(sparse, scene) | likeness, sparse.frames)
    return made


def _result(made: Generation, scene: Scene) -> dict[str, Any]:
    kept = {name: made.report[name] for name in FACTS if name in made.report}
    return kept | {"verdicts": [dataclasses.asdict(verdict) for verdict in judge(made.frames, scene)]}


def _settings(loaded: LoadedPipeline, chosen: Chosen, seed: int, steps: int | None) -> dict[str, Any]:
    return {
        "model": loaded.name,
        "method": None if chosen.method is None else repr(chosen.method),
        "cache": None if chosen.cache is None else repr(chosen.cache),
        "cache_digest": digest_of(chosen.cache),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "seed": seed,
        **loaded.defaults,
        "num_inference_steps": steps or loaded.defaults["num_inference_steps"],
    }


def _method(name: str, density: float | None, dense_steps: float | None) -> Any:
    options = {"density": density, "dense_steps": dense_steps}
    return registry.from_text(name, **{option: value for option, value in options.items() if value is not None})


def _picture(output: Path, number: int, way: str) -> Path:
    return output / "frames" / f"{number:02d}-{way}.png"


def _write_sheet(output: Path, scenes: list[Scene]) -> Path:
    """Put the strips of the first prompts on one picture."""
    cells = [
        (scene.caption, [imageio.imread(file) for way in WAYS if (file := _picture(output, number, way)).is_file()])
        for number, scene in enumerate(scenes[:SHEET_PROMPTS])
    ]
    sheet = output / "contact_sheet.png"
    write_contact_sheet(sheet, cells)
    return sheet


def run(
    loaded: LoadedPipeline, chosen: Chosen, scenes: list[Scene], seed: int, steps: int | None, output: Path
) -> Results:
    """Evaluate what an earlier run into `output` has not; write results.json, frames/ and contact_sheet.png."""
    results = Results(output / "results.json", _settings(loaded, chosen, seed, steps))
    results.resume()
    (output / "frames").mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(track(scenes, "prompts", console=Console(stderr=True))):
        if scene.caption in results.prompts:
            continue
        made = evaluate_scene(loaded, chosen, scene, seed + number, steps)
        for way, (_, frames) in made.items():
            imageio.imwrite(_picture(output, number, way), strip(frames))
        results.prompts[scene.caption] = {way: result for way, (result, _) in made.items()}
        results.save()
    _write_sheet(output, scenes)
    return results


def main(
    model: Annotated[str | None, typer.Option(help="pipeline folder; default: the embedded shapes-wan")] = None,
    prompts: Annotated[int, typer.Option(min=1, max=24, help="how many of the 24 held-out prompts")] = 24,
    seed: Annotated[int, typer.Option(help="seed of the first prompt; each further prompt takes the next")] = 0,
    method: Annotated[str, typer.Option(help="sparse-attention method, preset or none")] = registry.DEFAULT_METHOD,
    cache: Annotated[str | None, typer.Option(help="NAME or NAME:OPTION=VALUE of a cache, with the method")] = None,
    density: Annotated[float | None, typer.Option(help="share of query-key pairs computed in sparse calls")] = None,
    dense_steps: Annotated[float | None, typer.Option(help="share of the steps, from the first, kept dense")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="denoising steps; default: the model's")] = None,
    skip_sparse: Annotated[bool, typer.Option("--skip-sparse", help="only the dense videos")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    output: Annotated[Path, typer.Option(help="folder of results, frames and contact sheet")] = Path("out/evaluation"),
) -> None:
    """Judge the embedded model, dense and sparse, on prompts that it was not trained on; the same command goes on."""
    try:
        rests = None if cache is None or skip_sparse else from_text(cache)
        chosen = Chosen(None if skip_sparse or method == "none" else _method(method, density, dense_steps), rests)
        check_writable(output)
        loaded = load_pipeline(model, device, dtype)
        loaded.pipeline.set_progress_bar_config(disable=True)
        results = run(loaded, chosen, held_out_scenes()[:prompts], seed, steps, output)
    except (InputError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    Console().print(results.table())
    typer.echo(f"wrote {results.file} and {output / 'contact_sheet.png'}")


if __name__ == "__main__":
    typer.run(main)
