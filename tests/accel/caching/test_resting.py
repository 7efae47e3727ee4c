"""What comes into a transformer beside latents and text, while blocks rest: controls, lists, dictionaries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import accel
from accel.attention.call import Geometry, Progress
from accel.caching.calibration import Measuring
from accel.caching.hook import install_cache, remove_cache
from accel.caching.samples import sample_of
from accel.caching.table import BlockTable, Table
from accel.models.denoising import Denoising
from tests.accel.caching.toys import TOKENS, TOY, Toy, make_loop, play
from tests.accel.models.loops import Loop, difference


class Controlled(Toy):
    """A toy that adds something of its own behind each block, as a ControlNet's residuals are added."""

    def forward(self, hidden_states: Tensor, text: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        x = self.embed(hidden_states)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, text) + number * hidden_states.mean()
        return (self.head(x),)


def test_controls_of_today_are_added_once_where_blocks_rest() -> None:
    toy, loop = Controlled(), make_loop(1, steps=2, branches=("cond",))
    played = play(toy, Table(every=2, warmup=1), loop)
    with torch.no_grad():
        before = x = toy.embed(loop.latents[0])
        for number, block in enumerate(toy.blocks, start=1):
            moved = block(x, loop.text["cond"])
            before, x = before + moved - x, moved + number * loop.latents[0].mean()
        added = before - toy.embed(loop.latents[0])
        controls = sum(range(1, len(toy.blocks) + 1)) * loop.latents[1].mean()
        expected = toy.head(toy.embed(loop.latents[1]) + added + controls)
    assert {key[0] for key, kind in played.kinds.items() if kind == "reused"} == {1}
    torch.testing.assert_close(played.outputs[1, "cond"], expected)


def flux_controls(batch: int = 1) -> dict[str, list[Tensor]]:
    random = torch.Generator().manual_seed(0)
    names = "controlnet_block_samples", "controlnet_single_block_samples"
    return {name: [torch.randn(batch, 24, 32, generator=random)] for name in names}


def test_a_controlnet_of_flux_works_where_blocks_rest() -> None:
    loop, controls = Loop("flux"), flux_controls()
    still, plain = loop(still=True, **controls), loop(still=True)
    table = BlockTable("FluxTransformer2DModel", ("cc", "rr", "rr", "rr"))
    with accel.enabled(loop, None, cache=Table(table=table)):
        ours = loop(still=True, **controls)
    assert difference(plain, still) > 0.1, "the controls matter"
    assert difference(ours, still) < difference(still[-1:], still[:1]) + 1e-5


def test_calibration_counts_controls_once() -> None:
    loop, denoising = make_loop(2, steps=3, branches=("cond",)), Denoising()
    loop.latents[1:] = [loop.latents[0]] * 2  # nothing changes: what is reused errs by nothing
    toy = Controlled()
    measuring = Measuring(toy, TOY, denoising, ages=2, order=0)
    install_cache(toy, measuring)
    with torch.no_grad():
        for step, latents in enumerate(loop.latents):
            denoising.begin_call(Geometry(1, 1, TOKENS), Progress(step, 3, "cond"), None, True)
            toy(latents, loop.text["cond"])
    remove_cache(toy)
    errors = {key: float(error) for key, error in measuring.errors.items()}
    assert errors[1, 0, 1] < 1e-20 and errors[2, 0, 2] < 1e-20 < errors[1, 0, 0]


def test_samples_of_lists_are_decided_and_run_by_themselves() -> None:
    loop = Loop("flux")
    shared = {name: x for name, x in loop.inputs.items() if name.endswith("ids")}
    samples = [
        {name: torch.roll(x, row, -1) if x.ndim > 1 else x for name, x in loop.inputs.items() if name not in shared}
        | {name: [x[row : row + 1] for x in controls] for name, controls in flux_controls(2).items()}
        for row in range(2)
    ]
    together = {name: joined([sample[name] for sample in samples]) for name in samples[0]}
    with accel.enabled(loop, None, cache="easy:threshold=9:warmup=1") as handle:
        batch = loop(**shared, **together)
        assert {record.sample for record in handle.blocks()} == {0, 1}
        singles = [loop(**shared, **sample) for sample in samples]
    for step, output in enumerate(batch):
        torch.testing.assert_close(output, torch.cat([single[step] for single in singles]))


def joined(values: list[Any]) -> Any:
    """Return samples as a batch, within lists too."""
    first = values[0]
    return (
        torch.cat(values) if isinstance(first, Tensor) else [joined(list(each)) for each in zip(*values, strict=True)]
    )


def test_what_is_for_all_samples_is_not_split() -> None:
    layers, sizes, one = [7, 8, 9], [[(1, 4, 6)], [(1, 2, 2)], [(1, 1, 1)]], torch.arange(3)
    given = {"layers": layers, "sizes": sizes, "scale": (one, 0.5), "one": torch.ones(2)}
    assert sample_of(layers, 1, 3) == layers and sample_of(sizes, 1, 3) == [[(1, 2, 2)]]
    split = sample_of(given, 2, 3)
    assert split["layers"] == layers and split["sizes"] == [[(1, 1, 1)]] and split["one"] is given["one"]
    assert split["scale"][0].tolist() == [2] and split["scale"][1] == 0.5
