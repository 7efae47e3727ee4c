"""Methods compared on a tiny real pipeline: equal density, rows that a second run adds to, table and picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from accel.caching.table import BlockTable
from accel.cli import app
from accel.errors import InputError
from accel.methods.adaspa import AdaSpa
from accel.methods.re_ttention import ReTtention
from accel.methods.registry import from_text
from accel.workbench import bench
from accel.workbench.bench import run_bench
from accel.workbench.captioned_videos import read_video
from accel.workbench.cases import Case, cases, method_of
from accel.workbench.generation import CallOptions
from accel.workbench.kept_videos import KeptVideos
from accel.workbench.loading import LoadedPipeline
from accel.workbench.pareto import draw_blocks, draw_pareto, frontier, way_of
from accel.workbench.rows import Rows, means, setting_of
from tests.tiny_wan import save_tiny, tiny_pipeline

PROMPT = "a red circle moves left"
DEFAULTS = {
    "num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 1.0,
    "max_sequence_length": 16,
}  # fmt: skip
CASES = cases(["sparse-vdit", "adaspa"], [0.5], [0.0, 0.4])


@pytest.fixture(scope="module")
def loaded() -> LoadedPipeline:
    return LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS)


@pytest.fixture(scope="module")
def file(loaded: LoadedPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bench") / "rows.json"
    run_bench(loaded, CASES, [PROMPT], [0, 1], Rows(file), {})
    return file


def test_every_case_has_a_row_for_every_video(file: Path):
    rows = json.loads(file.read_text())
    assert len(rows) == 2 * len(CASES)
    found = {(row["method"], row["density_asked"], row["dense_share"], row["seed"]) for row in rows}
    assert found == {(case.method, case.density, case.dense_steps, seed) for case in CASES for seed in (0, 1)}
    for row in rows:
        assert row["speedup"] == pytest.approx(row["dense_seconds"] / row["sparse_seconds"])
        assert row["dense_steps"] == (2 if row["dense_share"] else 1), "both need one full step to search in"
        assert 10 < float(row["psnr_db"]) and 0 < row["recall"] <= 1.001 and 0 < row["planning_share"] < 1


def test_measured_density_is_the_one_asked_for(loaded: LoadedPipeline):
    case = Case("adaspa", 0.5, 0.4)
    option = bench.calibrate(loaded, case, PROMPT, {})
    report = bench.generate(loaded, PROMPT, method_of(case, option)).report
    # 192 tokens are three blocks of 64: densities come in thirds.
    assert abs(report["density"] - 0.5) <= 1 / 3 / 2 + 1e-6


def test_videos_are_kept_beside_their_rows(loaded: LoadedPipeline, tmp_path: Path):
    chosen, made = cases(["dense"], [1.0], [0.0], ["table:every=2", "easy"]), []
    for steps in (3, 4):  # the second time names are taken, and what is there stays
        made += run_bench(loaded, chosen, [PROMPT], [5], Rows(None, tmp_path / "videos"), {"steps": steps})
    files = [row["video"] for row in made]
    assert files[0] == "a-red-circle-moves-left-5/cache-table-every=2-a99517c0.mp4"
    assert [Path(row["dense_video"]).name for row in made] == ["dense.mp4"] * 2 + ["dense-2.mp4"] * 2
    there = {path.relative_to(tmp_path / "videos").as_posix() for path in (tmp_path / "videos").rglob("*.mp4")}
    assert there == {*files, *(row["dense_video"] for row in made)} and len(there) == 6
    assert read_video(tmp_path / "videos" / files[0], 9, 64, 64).shape == (1, 3, 9, 64, 64)
    assert KeptVideos(tmp_path).find(f"videos/{files[3]}").is_file()
    with pytest.raises(InputError, match="none.mp4' is not there; give the folder that accel bench --videos wrote to"):
        KeptVideos(tmp_path).find("none.mp4")


def test_names_of_videos_differ_where_prompts_do(loaded: LoadedPipeline, tmp_path: Path):
    made, videos = bench.generate(loaded, PROMPT), KeptVideos(tmp_path)
    prompts = ["a/b", "a\\b", "a b", "../..", "x" * 300, "x" * 301, "ein Kreis, rot: \u00fc"]
    files = [videos.keep(made, prompt, 0, "dense") for prompt in prompts]
    assert len({Path(file).parent for file in files}) == len(prompts)
    assert all((tmp_path / file).is_file() and len(file) < 120 for file in files) and len(list(tmp_path.iterdir())) == 7


def test_second_run_makes_only_what_is_missing(loaded: LoadedPipeline, file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "generate", pytest.fail)
    run_bench(loaded, CASES, [PROMPT], [0, 1], Rows(file), {})


def test_means_are_over_prompts_and_seeds():
    rows = [
        {"method": "a", "density_asked": 0.5, "dense_share": 0.0, "cache": "none", "speedup": speedup, "psnr_db": psnr}
        for speedup, psnr in ((1.0, "inf"), (2.0, 30.0))
    ]
    (mean,) = means(rows, ("speedup", "psnr_db"))
    assert mean["speedup"] == 1.5 and mean["psnr_db"] == float("inf") and mean["count"] == 2


def test_frontier_drops_what_is_worse_in_both():
    assert frontier([(30, 1.5), (25, 1.4), (20, 2.0), (35, 1.1)]) == [(20, 2.0), (30, 1.5), (35, 1.1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["magic"], [0.5], [0.0]), "unknown method 'magic'"),
        ((["adaspa:base=svg2"], [0.5], [0.0]), "method adaspa has no option base"),
        ((["adaspa:block"], [0.5], [0.0]), "'block' in 'adaspa:block' is no option; write NAME:OPTION=VALUE"),
        ((["adaspa:block=big"], [0.5], [0.0]), "'adaspa:block=big' cannot be used"),
        ((["adaspa"], [1.5], [0.0]), "density must be above 0"),
        ((["full"], [0.3], [0.0]), "full attention has density 1"),
        ((["adaspa"], [0.3], [0.0], ["magic"]), "unknown cache 'magic'; accepted: easy, dual-block"),
        ((["dense"], [0.3], [0.0], ["easy:threshold=-1"]), "threshold must be 0 or more"),
        ((["dense"], [0.3], [0.0], ["diffusers.Magic"]), "unknown cache 'diffusers.Magic'; accepted: easy, .*SeaCache"),
        ((["adaspa"], [0.5], [-1.0]), "dense_steps must lie between"),
        ((["dense"], [0.5], [0.0]), "dense without a cache is what the others are compared with"),
    ],
)
def test_bad_cases(arguments: tuple, message: str):
    with pytest.raises(InputError, match=message):
        cases(*arguments)


def test_methods_come_with_options():
    (case,) = cases(["re-ttention:base=adaspa:growth=0.02:residual_rank=None"], [0.5], [0.25])
    method = method_of(case, 0.4)
    assert method == ReTtention(dense_steps=0.25, base=AdaSpa(0.4, dense_steps=0.25), growth=0.02)
    assert from_text("adaspa:density=0.3", density=0.5) == AdaSpa(density=0.3)


def test_caches_are_cases_of_their_own(loaded: LoadedPipeline, tmp_path: Path):
    chosen = cases(["dense", "adaspa"], [0.4, 0.5], [0.4], ["none", "table:warmup=1", "easy"])
    assert [case for case in chosen if case.method == "dense"] == [
        Case("dense", 1.0, 0.0, "table:warmup=1"),
        Case("dense", 1.0, 0.0, "easy"),
    ]
    assert len(chosen) == 2 + 2 * 3 and str(chosen[0]) == "cache table:warmup=1"
    file = tmp_path / "rows.json"
    pair, alone = Case("adaspa", 0.5, 0.0, "table:warmup=1"), Case("adaspa", 0.5, 0.0)
    made = run_bench(loaded, [alone, pair, chosen[0]], [PROMPT], [0], Rows(file), {"steps": 4})
    assert [(row["method"], row["cache"]) for row in made] == [
        ("adaspa", "none"),
        ("adaspa", "table:warmup=1"),
        ("dense", "table:warmup=1"),
    ]
    assert [row["blocks"] for row in made] == [None, ["cc", "rr", "cc", "rr"], ["cc", "rr", "cc", "rr"]]
    assert made[1]["blocks_computed"] == 0.5 and made[1]["density"] is not None and made[2]["density"] is None
    rows, setting = Rows(file), setting_of(loaded, {"steps": 4})
    assert rows.find(pair, PROMPT, 0, setting) == made[1] and rows.find(alone, PROMPT, 0, setting) == made[0]
    draw_blocks(rows.rows, tmp_path / "blocks.png")
    draw_pareto(means(rows.rows, ["density", "speedup", "psnr_db"]), tmp_path / "pareto.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("blocks.png", "pareto.png"))
    assert [way_of(row) for row in made] == ["adaspa", "adaspa with table:warmup=1", "table:warmup=1"]


@pytest.mark.parametrize(
    "cache",
    [
        "FirstBlockCache:threshold=2.0",
        "MagCache:threshold=5.0",
        "TaylorSeerCache:cache_interval=2",
        "SeaCache:threshold=5.0",
        "PyramidAttentionBroadcast",
    ],
)
def test_caches_of_diffusers_have_rows(loaded: LoadedPipeline, cache: str):
    chosen = cases(["dense", "adaspa"], [0.5], [0.0], [f"diffusers.{cache}"])
    made = run_bench(loaded, chosen, [PROMPT], [0], Rows(None), {"steps": 6})
    assert [row["cache"] for row in made] == [f"diffusers.{cache}"] * 2
    assert all(row["psnr_db"] != float("inf") and row["blocks"] is None for row in made)
    assert not loaded.pipeline.transformer.is_cache_enabled


def test_rows_from_before_caches_are_rows_without_one(tmp_path: Path):
    (tmp_path / "rows.json").write_text(json.dumps([{"method": "adaspa", "density_asked": 0.5, "dense_share": 0.0}]))
    rows = Rows(tmp_path / "rows.json")
    assert rows.find(Case("adaspa", 0.5, 0.0), PROMPT, 0, {}) is not None
    assert rows.find(Case("adaspa", 0.5, 0.0, "easy"), PROMPT, 0, {}) is None


def test_a_cache_whose_file_has_changed_is_measured_anew(
    loaded: LoadedPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    table, file = tmp_path / "table.json", tmp_path / "rows.json"
    case = Case("dense", 1.0, 0.0, f"table:table={table}")
    small: CallOptions = {"steps": 2, "frames": 5, "height": 32, "width": 32}

    def blocks(*words: str) -> list[list[str]]:
        BlockTable("", words).save(table)
        return [row["blocks"] for row in run_bench(loaded, [case], [PROMPT], [0], Rows(file), small)]

    assert blocks("cc", "rr") == [["cc", "rr"]]
    assert blocks("cc", "cr") == [["cc", "cr"]], "and not what the table of before made"
    monkeypatch.setattr(bench, "generate", pytest.fail)
    assert blocks("cc", "rr") == [["cc", "rr"]], "which is still there"
    assert [row["blocks"] for row in Rows(file).current({}, {})] == [["cc", "cr"]], "of a cache that is not asked for"
    old = [{name: value for name, value in row.items() if name != "cache_digest"} for row in Rows(file).rows]
    file.write_text(json.dumps(old))
    assert blocks("cc", "cc") == [["cc", "rr"], ["cc", "cr"]], "rows that do not know what was read stay of use"


def test_caches_that_do_not_fit_are_refused_before_anything_runs(
    loaded: LoadedPipeline, monkeypatch: pytest.MonkeyPatch
):
    for name in ("generate", "warm_up"):
        monkeypatch.setattr(bench, name, pytest.fail)
    chosen = cases(["dense"], [1.0], [0.0], ["easy", "diffusers.MagCache", "dual-block:first=1:mask=10"])
    with pytest.raises(InputError, match="mask is 10, and this generation has 3 steps: give as many"):
        run_bench(loaded, chosen, [PROMPT], [0], Rows(None), {})
    assert not loaded.pipeline.transformer._diffusers_hook.hooks


def test_file_that_is_no_json(tmp_path: Path):
    (tmp_path / "rows.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        Rows(tmp_path / "rows.json")
    for content in ('{"method": "adaspa"}', '[{"psnr_db": 40.0}]', "[1]"):  # a report, and what else JSON may be
        (tmp_path / "rows.json").write_text(content)
        with pytest.raises(InputError, match="holds no rows of accel bench; move it away"):
            Rows(tmp_path / "rows.json")


def test_command_prints_a_table_and_draws(tmp_path: Path):
    model = save_tiny(tmp_path / "tiny", **DEFAULTS | {"num_frames": 5, "height": 32, "width": 32})
    arguments = ["bench", PROMPT, "--model", str(model), "--methods", "adaspa", "--densities", "1", "--seeds", "1"]
    output = ["--dense-steps", "0", "--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "pareto.png")]
    output += ["--caches", "none,easy", "--block-plot", str(tmp_path / "blocks.png")]
    result = CliRunner().invoke(app, [*arguments, *output])
    assert result.exit_code == 0, result.output
    assert "adaspa" in result.stdout and (tmp_path / "pareto.png").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2 and (tmp_path / "blocks.png").is_file()
    refused = CliRunner().invoke(app, [*arguments[:-4], "--densities", "many"])
    assert refused.exit_code == 2 and "error: densities is 'many'; give numbers" in refused.stderr
