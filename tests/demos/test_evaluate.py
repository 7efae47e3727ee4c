from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest
from typer.testing import CliRunner

from accel.caching.table import BlockTable, Table
from accel.errors import InputError
from accel.methods.preset import Preset
from accel.methods.svg_ear import SVGEAR
from accel.workbench.generation import Generation
from accel.workbench.loading import load_pipeline
from accel.workbench.their_caches import digest_of, from_text
from demos.shapes_wan import evaluate
from demos.shapes_wan.results import Results
from demos.shapes_wan.scenes import COLORS, SIZES, held_out_scenes


def test_a_second_run_goes_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_pipeline(str(tiny_model), "cpu")
    chosen = evaluate.Chosen(evaluate._method("sparse-vdit", 0.5, 0.3), from_text("prune:threshold=0"))
    made: list[str] = []

    def counted(*arguments: Any, **options: Any) -> Generation:
        made.append(arguments[1])
        return generate(*arguments, **options)

    generate = evaluate.generate
    monkeypatch.setattr(evaluate, "generate", counted)
    scenes = held_out_scenes()
    evaluate.run(loaded, chosen, scenes[:2], 0, 2, tmp_path)
    results = evaluate.run(loaded, chosen, scenes[:3], 0, 2, tmp_path)
    assert made == [scene.caption for scene in scenes[:3] for _ in ("dense", "sparse")]
    content = json.loads((tmp_path / "results.json").read_text())
    assert list(content["prompts"]) == [scene.caption for scene in scenes[:3]]
    assert content["settings"]["dtype"] == str(loaded.dtype).removeprefix("torch.")
    assert content["settings"]["cache_digest"] is None, "it has read no file"
    table = evaluate.Chosen(None, Table(BlockTable("", ("cc", "rr"))))
    assert evaluate._settings(loaded, table, 0, 2)["cache_digest"] == digest_of(table.cache)
    assert content["summary"]["sparse"]["psnr_db"] > 10 and content["settings"]["cache"].startswith("Prune(")
    assert content["prompts"][scenes[0].caption]["sparse"]["blocks_computed"] == 1
    assert len(content["prompts"][scenes[0].caption]["sparse"]["verdicts"]) == len(scenes[0].actors)
    assert results.table().row_count == 2
    assert imageio.imread(tmp_path / "contact_sheet.png").std() > 10
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(InputError, match="another seed; give another --output"):
        evaluate.run(loaded, chosen, scenes[:3], 1, 2, tmp_path)


def test_what_old_results_do_not_say_is_taken_to_fit(tmp_path: Path) -> None:
    file, settings = tmp_path / "results.json", {"seed": 0, "dtype": "float32", "cache_digest": "abc"}
    Results(file, settings).save()
    Results(file, settings).resume()
    with pytest.raises(InputError, match="has another dtype, cache_digest; give another --output or delete it"):
        Results(file, settings | {"dtype": "bfloat16", "cache_digest": "abd"}).resume()
    Results(file, {"seed": 0}).save()
    Results(file, settings).resume()
    with pytest.raises(InputError, match="has another cache; give"):
        Results(file, settings | {"cache": "EasyCache()"}).resume()


def test_targets_are_met_or_missed(tmp_path: Path) -> None:
    def row(right: int, **likeness: float) -> dict[str, Any]:
        verdicts = [{"color": True, "motion": number < right, "shape": number < 8} for number in range(10)]
        return {"seconds": 1.0, "verdicts": verdicts, **likeness}

    results = Results(tmp_path / "results.json", {})
    for number in range(10):
        ways = {"dense": row(9), "sparse": row(8, psnr_db=30.0, ssim=0.9)}
        for way in ways.values():
            way["verdicts"] = [way["verdicts"][number]]
        results.prompts[f"a {SIZES[number % 2]} {list(COLORS)[number // 2]} circle moves left"] = ways
    columns = [list(column.cells) for column in results.table().columns]
    assert columns[1] == ["100.0 (>= 95: met)", "100.0 (dense - 3: met)"]
    assert columns[2] == ["90.0 (>= 90: met)", "80.0 (dense - 3: missed)"]
    assert columns[3] == ["80.0 (>= 80: met)", "80.0 (dense - 3: met)"]
    assert columns[4] == columns[5] == ["-", "-"] and columns[6] == ["-", "30.00"]


def test_forms_are_averaged_by_what_should_be_seen(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json", {})
    right = {"color": True, "motion": True, "shape": True}
    for caption, forms in (
        ("a red circle moves left and a small blue square stays still", (0.9, 0.5)),
        ("a red triangle moves up", (0.7,)),
    ):
        results.prompts[caption] = {"dense": {"seconds": 1.0, "verdicts": [{**right, "form": form} for form in forms]}}
    summary = results.summary()["dense"]
    assert summary["circularity"] == 0.9 and summary["corners"] == pytest.approx(0.6)


def test_the_preset_is_judged_as_users_get_it() -> None:
    assert evaluate._method("preset", None, None) == Preset()
    assert evaluate._method("preset", 0.3, None) == SVGEAR(density=0.3)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    app = evaluate.typer.Typer()
    app.command()(evaluate.main)
    for arguments, message in (
        (["--method", "magic"], "unknown method 'magic'"),
        (["--method", "none", "--cache", "magic"], "unknown cache 'magic'"),
        (["--model", str(tmp_path / "absent")], "does not exist"),
    ):
        result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert message in result.stderr and "Traceback" not in result.output
        assert not (tmp_path / "out").exists()
