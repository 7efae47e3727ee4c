"""Files of every kind, made here and read back, and one clear line for each kind of bad input."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pointcloud.files import SUFFIXES, read_labels, read_points, write_points
from pointcloud.points import PointCloud
from tests.pointcloud.files.test_broken_files import whole_files

MAP = np.array([500_123.4, 4_100_567.8, 12.5])  # a place in map coordinates


def draw(columns: int, rows: int = 50) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 10, (rows, columns)).astype("<f4")


def make_cloud(origin: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> PointCloud:
    generator = torch.Generator().manual_seed(0)
    attributes = {
        "intensity": torch.rand(50, generator=generator),
        "color": torch.rand(50, 3, generator=generator),
        "label": torch.arange(50) - 25,
    }
    return PointCloud(torch.randn(50, 3, generator=generator), attributes, origin)


def write_las(path: Path, colors: int | None = None, rows: int = 50, full: int = 65535) -> np.ndarray:
    """Write points around MAP to the millimetre, intensities up to `full` and colours to `colors`; return xyz."""
    laspy = pytest.importorskip("laspy")
    pytest.importorskip("lazrs")
    header = laspy.LasHeader(point_format=1 if colors is None else 3, version="1.2")
    header.scales, header.offsets = np.full(3, 1e-3), np.floor(MAP)
    las = laspy.LasData(header)
    xyz = (MAP + draw(3, rows)).round(3)
    las.x, las.y, las.z = xyz.T
    las.intensity, las.classification = np.linspace(0, full, rows), np.arange(rows) % 32
    if colors is not None:
        las.red = las.green = las.blue = np.linspace(0, colors, rows).astype(np.uint16)
    las.write(path)
    return xyz


def test_kitti(tmp_path: Path) -> None:
    rows = draw(4)
    rows.tofile(tmp_path / "000000.bin")
    cloud = read_points(tmp_path / "000000.bin")
    assert np.array_equal(cloud.values(("intensity",)).numpy(), rows) and cloud.origin == (0, 0, 0)
    write_points(tmp_path / "again.bin", cloud)
    assert (tmp_path / "again.bin").read_bytes() == rows.tobytes()


@pytest.mark.parametrize(
    ("name", "layout"), [("scan.PCD.BIN", None), ("scan.bin", "nuscenes"), ("scan.raw", "nuscenes")]
)
def test_nuscenes(tmp_path: Path, name: str, layout: str | None) -> None:
    rows = draw(5)
    rows[:, 4] = np.arange(50) % 32
    rows.tofile(tmp_path / name)
    cloud = read_points(str(tmp_path / name), layout)
    assert cloud.attributes["ring"].tolist() == [ring % 32 for ring in range(50)]
    assert np.array_equal(cloud.values(("intensity", "ring")).numpy(), rows)


def test_semantic_kitti_labels(tmp_path: Path) -> None:
    path = tmp_path / "000000.label"
    np.array([0xFFFF0001, 0x0002FFFF, 40], "<u4").tofile(path)
    label, instance = read_labels(path, 3)
    assert label.tolist() == [1, 0xFFFF, 40] and instance.tolist() == [0xFFFF, 2, 0]
    with pytest.raises(ValueError, match="has 3 labels for 4 points"):
        read_labels(path, 4)
    path.write_bytes(bytes(7))
    with pytest.raises(ValueError, match="has 7 bytes, no whole number of 4-byte labels"):
        read_labels(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_labels(tmp_path / "none.label")


@pytest.mark.parametrize("columns", [3, 4, 6])
@pytest.mark.parametrize("dtype", ["<f4", ">f8"])
def test_npy(tmp_path: Path, columns: int, dtype: str) -> None:
    np.save(tmp_path / "a.npy", draw(columns).astype(dtype))
    cloud = read_points(tmp_path / "a.npy")
    assert tuple(cloud.attributes) == ("intensity", "elongation", "no_label_zone")[: columns - 3]
    write_points(tmp_path / "b.npy", cloud)
    assert np.array_equal(np.load(tmp_path / "b.npy"), draw(columns))


@pytest.mark.parametrize("columns", [3, 4, 6])
def test_xyz(tmp_path: Path, columns: int) -> None:
    path, rows = tmp_path / "a.xyz", draw(columns) + np.pad(MAP, (0, columns - 3))
    path.write_text("# made by hand\n\n" + "\n".join(" ".join(map(repr, row)) for row in rows.tolist()) + "\n")
    cloud = read_points(path)
    assert tuple(cloud.attributes) == (("intensity",) if columns == 4 else ())
    assert np.abs(cloud.xyz.double().numpy() + cloud.origin - rows[:, :3]).max() < 1e-3


def test_ply_keeps_attributes_and_origin(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    for cloud in (make_cloud(), make_cloud((500_000.0, 4_100_000.0, 0.0))):
        write_points(tmp_path / "a.ply", cloud)
        again = read_points(tmp_path / "a.ply")
        places = [part.xyz.double() + torch.tensor(part.origin).double() for part in (again, cloud)]
        assert (places[0] - places[1]).abs().max() < 1e-6
        assert set(again.attributes) == set(cloud.attributes) and any(again.origin) == any(cloud.origin)
        assert torch.equal(again.attributes["label"], cloud.attributes["label"])
        assert torch.equal(again.attributes["intensity"], cloud.attributes["intensity"])
        assert (again.attributes["color"] - cloud.attributes["color"]).abs().max() <= 0.5 / 255 + 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_ply_of_odd_attributes(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    attributes = {
        "normal": torch.rand(2, 3),
        "two words": torch.rand(2),
        "flow": torch.rand(2, 2),
        "time": torch.tensor([1, 1 << 40]),
        "seen": torch.tensor([True, False]),
        "deep": torch.rand(2, 1, 1),
    }
    write_points(tmp_path / "a.ply", PointCloud(torch.rand(2, 3), attributes))
    again = read_points(tmp_path / "a.ply").attributes
    assert set(again) == {"normal", "two_words", "flow_0", "flow_1", "time", "seen", "deep"}
    assert torch.equal(again["normal"], attributes["normal"]) and torch.equal(again["flow_1"], attributes["flow"][:, 1])
    assert again["time"].tolist() == [1, 1 << 40] and again["seen"].tolist() == [1, 0]
    with pytest.raises(ValueError, match="cannot have two properties x; rename x"):
        write_points(tmp_path / "b.ply", PointCloud(torch.zeros(2, 3), {"x": torch.zeros(2)}))


def test_ply_of_another_program(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    names = ("double x", "double y", "double z", "uchar red", "uchar green", "uchar blue", "float scalar_Intensity")
    header = ["ply", "format ascii 1.0", "element vertex 2", *(f"property {name}" for name in names), "end_header"]
    (tmp_path / "a.ply").write_text("\n".join([*header, "1 2 3 255 0 51 .5", "4 5 6 0 0 255 .25", ""]))
    cloud = read_points(tmp_path / "a.ply")
    assert cloud.attributes["intensity"].tolist() == [0.5, 0.25] and cloud.xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert torch.allclose(cloud.attributes["color"], torch.tensor([[1, 0, 0.2], [0, 0, 1]]))
    text = (tmp_path / "a.ply").read_text()
    (tmp_path / "b.ply").write_text(text.replace("float scalar", "uint scalar").replace(" .", " "))
    with pytest.warns(UserWarning, match=r"b\.ply: \[Open3D WARNING\] Read PLY warning: skipping property"):
        assert set(read_points(tmp_path / "b.ply").attributes) == {"color"}


@pytest.mark.parametrize("kind", [{"write_ascii": True}, {"compressed": True}, {}])
def test_pcd(tmp_path: Path, kind: dict[str, bool]) -> None:
    open3d = pytest.importorskip("open3d", exc_type=ImportError)
    rows = draw(4)
    cloud = open3d.t.geometry.PointCloud(np.ascontiguousarray(rows[:, :3]))
    cloud.point["intensity"] = np.ascontiguousarray(rows[:, 3:])
    cloud.point["label"] = np.arange(50)[:, None]
    path = tmp_path / "a.pcd"
    assert open3d.t.io.write_point_cloud(str(path), cloud, **kind)
    again = read_points(path)
    assert np.abs(again.values(("intensity",)).numpy() - rows).max() < 1e-5
    assert again.attributes["label"].tolist() == list(range(50))
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(ValueError, match="cannot be read as .pcd: it is cut short or of another kind"):
        read_points(path)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
@pytest.mark.parametrize("colors", [None, 255, 65535])
def test_las_keeps_millimetres(tmp_path: Path, suffix: str, colors: int | None) -> None:
    path = tmp_path / f"a{suffix}"
    xyz = write_las(path, colors)
    cloud = read_points(path)
    assert cloud.origin[0] > 0 and cloud.origin[1] > 0 and cloud.origin[2] == 0
    assert np.abs(cloud.xyz.double().numpy() + cloud.origin - xyz).max() < 1e-4
    assert cloud.attributes["label"].tolist() == [row % 32 for row in range(50)]
    assert all(column.dtype == torch.float32 for name, column in cloud.attributes.items() if name != "label")
    fractions = torch.linspace(0, 1, 50)
    assert (cloud.attributes["intensity"] - 65535 * fractions).abs().max() <= 1
    assert ("color" in cloud.attributes) == (colors is not None)
    if colors is not None:
        assert (cloud.attributes["color"] - fractions[:, None]).abs().max() < 1.01 / colors


def test_a_stray_point_far_away_moves_no_scan(tmp_path: Path) -> None:
    rows = draw(4)
    rows[7, 0] = 1e6
    rows.tofile(tmp_path / "a.bin")
    assert read_points(tmp_path / "a.bin").origin == (0, 0, 0)


def test_two_points_at_the_origin_move_no_survey(tmp_path: Path) -> None:
    table = draw(3).astype(np.float64) + MAP
    table[[3, 8]] = 0
    np.save(tmp_path / "a.npy", table)
    cloud = read_points(tmp_path / "a.npy")
    error = np.abs(cloud.xyz.double().numpy() + cloud.origin - table).max(1)
    assert cloud.origin[:2] != (0, 0) and np.delete(error, [3, 8]).max() < 1e-4 and error.max() < 0.3


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las_cut_short(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_las(path)
    whole = path.read_bytes()
    for kept in (whole[:-20], whole[:-28], whole[:100], b"hello"):  # a record has 28 bytes
        path.write_bytes(kept)
        with pytest.raises(ValueError, match="cut short"):
            read_points(path)


@pytest.mark.parametrize(
    ("suffix", "place", "number", "said"),
    [
        (".las", 100, 0xFFFFFFFF, "no place for 4294967295 records"),
        (".laz", 100, 0xFFFFFFFF, "no place for 4294967295 records"),
        (".las", 107, 0xFFFFFFFF, "50 of 4294967295 points are there"),
        (".laz", 107, 0xFFFFFFFF, "cannot be read as .laz"),
        (".laz", -1, 0xFFFFFFFF, "no place for 4294967295 chunks"),
    ],
)
def test_las_that_promises_too_much(tmp_path: Path, suffix: str, place: int, number: int, said: str) -> None:
    """Each of these was read for hours, or asked for so much memory that the process ended."""
    path = tmp_path / f"a{suffix}"
    write_las(path)
    content = bytearray(path.read_bytes())
    if place < 0:  # the chunk table stands where the first number before the points says
        start = int.from_bytes(content[96:100], "little")
        place = 4 + int.from_bytes(content[start : start + 8], "little")
    content[place : place + 4] = number.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_points(path)


@pytest.mark.parametrize("lost", ["DATA", "POINTS", "SIZE", "COUNT", "TYPE", "FIELDS"])
def test_pcd_without_a_whole_header_is_refused(tmp_path: Path, lost: str) -> None:
    """Without DATA, open3d returned what was in memory."""
    open3d = pytest.importorskip("open3d", exc_type=ImportError)
    cloud = open3d.t.geometry.PointCloud(draw(3))
    cloud.point["intensity"] = draw(1)
    path = tmp_path / "a.pcd"
    assert open3d.t.io.write_point_cloud(str(path), cloud)
    lines = path.read_bytes().split(b"\n")
    kept = [line for line in lines if not line.startswith(lost.encode())]
    assert len(kept) < len(lines)
    path.write_bytes(b"\n".join(kept))
    if lost == "COUNT":  # one each is what it means
        assert len(read_points(path)) == 50
        return
    with pytest.raises(ValueError, match="cannot be read as .pcd"):
        read_points(path)


@pytest.mark.parametrize("suffix", [".ply", ".pcd"])
def test_open3d_files_cut_short(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    open3d = pytest.importorskip("open3d", exc_type=ImportError)
    path = tmp_path / f"a{suffix}"
    assert open3d.t.io.write_point_cloud(str(path), open3d.t.geometry.PointCloud(draw(3)))
    whole = path.read_bytes()
    for kept in (whole[:-20], whole[:60], b"hello", b""):
        path.write_bytes(kept)
        with pytest.raises(ValueError, match=f"cannot be read as {suffix}: it is cut short or of another kind"):
            read_points(path)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.bin",
            bytes(17),
            r"has 17 bytes, no whole number of 16-byte rows \(x y z intensity\): cut short, or not kitti",
        ),
        (
            "a.pcd.bin",
            bytes(16),
            r"no whole number of 20-byte rows \(x y z intensity ring\): cut short, or not nuscenes",
        ),
        ("a.bin", b"", "holds no points"),
        ("a.pcd.bin", b"", "holds no points"),
        ("a.xyz", b"", "holds no points"),
        ("a.xyz", b"1 2\n3 4\n", "has 2 columns; at least x y z are needed"),
        ("a.xyz", b"1 2 3\n4 5\n", "cannot be read as rows of numbers x y z"),
        ("a.xyz", b"1 2 three\n", "cannot be read as rows of numbers x y z"),
        ("a.xyz", b"1 2 nan\n1 2 3\n", "has NaN or infinity in xyz of 1 of 2 points; remove them"),
        ("a.xyz", b"1 2 1e99\n1 2 3\n", "has NaN or infinity in xyz of 1 of 2 points; remove them"),
        ("a.npy", b"hello", "cannot be read as .npy, it is cut short or of another kind"),
        ("a.npy", b"", "cannot be read as .npy, it is cut short or of another kind"),
        ("a.obj", b"v 1 2 3", "ends with .obj; accepted: .bin, .pcd.bin, .npy, .xyz, .ply, .pcd, .las, .laz"),
        ("a", b"", "ends with no suffix; accepted"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_points(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("columns", "name"), [(4, "a.bin"), (5, "a.pcd.bin"), (4, "a.npy")])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_and_infinity_are_refused(tmp_path: Path, columns: int, name: str, value: float) -> None:
    for column, part in ((1, "xyz"), (3, "intensity")):
        rows = draw(columns)
        rows[[3, 8], column] = value
        np.save(tmp_path / name, rows) if name.endswith("npy") else rows.tofile(tmp_path / name)
        with pytest.raises(ValueError, match=f"has NaN or infinity in {part} of 2 of 50 points; remove them"):
            read_points(tmp_path / name)


@pytest.mark.parametrize(
    "table", [draw(2), draw(7), draw(3).astype(int), draw(3)[0], np.array(["a"]), np.zeros(3, "f4,f4,f4")]
)
def test_npy_of_other_things_is_refused(tmp_path: Path, table: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", table)
    with pytest.raises(ValueError, match=r"must hold floats \(points, 3 to 6\): x y z intensity elongation"):
        read_points(tmp_path / "a.npy")


def test_npy_cut_short_or_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, draw(4))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="cannot be read as .npy"):
        read_points(path)
    with path.open("wb") as file:
        np.savez(file, draw(4))
    with pytest.raises(ValueError, match="found an archive"):
        read_points(path)


def test_missing_files_folders_and_layouts(tmp_path: Path) -> None:
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            read_points(path)
    draw(4).tofile(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="unknown layout 'other'; accepted: kitti, nuscenes, waymo"):
        read_points(tmp_path / "a.bin", "other")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_has_a_reader_in_either_case(tmp_path: Path, suffix: str) -> None:
    if suffix == ".ply":
        pytest.importorskip("open3d", exc_type=ImportError)
    content = whole_files(tmp_path, suffix)[0]
    for name in (f"scan{suffix}", f"SCAN{suffix.upper()}"):
        (tmp_path / name).write_bytes(content)
        assert len(read_points(tmp_path / name)) == 200


def test_seconds_of_this_century_keep_their_hundredths(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    times = 1.7e9 + 0.01 * torch.arange(50, dtype=torch.float64)
    write_points(tmp_path / "a.ply", PointCloud(torch.rand(50, 3), {"time": times}))
    found = read_points(tmp_path / "a.ply").attributes["time"]
    assert found.dtype == torch.float64 and torch.equal(found, times)


def test_intensities_are_in_single_precision(tmp_path: Path) -> None:
    """As coordinates are, beside which networks take them."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((50, 4)))
    (tmp_path / "a.xyz").write_text("1 2 3 0.5\n" * 50)
    for name in ("a.npy", "a.xyz"):
        assert read_points(tmp_path / name).attributes["intensity"].dtype == torch.float32


def test_writing_is_refused_or_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = make_cloud()
    for name in ("a.las", "a.pcd.bin"):
        with pytest.raises(ValueError, match=r"cannot be written; accepted: \.ply, \.npy, \.bin"):
            write_points(tmp_path / name, cloud)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_points(tmp_path / "none" / "a.npy", cloud)
    with pytest.raises(ValueError, match="no points to write"):
        write_points(tmp_path / "a.npy", PointCloud(torch.zeros(0, 3)))
    with pytest.raises(ValueError, match="the points have no intensity"):
        write_points(tmp_path / "a.bin", PointCloud(torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="no place for the origin"):
        write_points(tmp_path / "a.bin", make_cloud((1.0, 0.0, 0.0)))
    (tmp_path / "a.npy").write_bytes(b"old")

    def fail(file: object, table: np.ndarray) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_points(tmp_path / "a.npy", cloud)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"] and (tmp_path / "a.npy").read_bytes() == b"old"


@pytest.mark.parametrize(("suffix", "module"), [(".ply", "open3d"), (".las", "laspy"), (".laz", "lazrs")])
def test_missing_packages_are_named(tmp_path: Path, suffix: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".laz":
        pytest.importorskip("laspy")
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"need.* pip install (open3d|laspy lazrs)$"):
        read_points(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("error", ["OSError", "ImportError"])
def test_missing_system_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    (tmp_path / "open3d.py").write_text(f"raise {error}('libusb-1.0.so.0: cannot open shared object file')")
    write_points(tmp_path / "a.ply", make_cloud())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open3d", raising=False)
    with pytest.raises(ImportError, match=r"libusb-1.0.so.0.*apt install libusb-1.0-0 libgl1 libegl1 libx11-6"):
        read_points(tmp_path / "a.ply")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("suffix", "attributes", "message"),
    [
        (
            ".npy",
            {"intensity": torch.ones(5, 2)},
            "intensity must have one number for each point .* got .5, 2.; write .ply",
        ),
        (
            ".bin",
            {"intensity": torch.ones(5, 2)},
            "intensity must have one number for each point .* got .5, 2.; write .ply",
        ),
        (".ply", {"red": torch.ones(5)}, "keeps red for color; rename that attribute"),
        (".ply", {"phase": torch.ones(5, dtype=torch.complex64)}, "takes real numbers .* got phase torch.complex64"),
        (".ply", {"nothing": torch.ones(5, 0)}, "takes real numbers .* got nothing torch.float32 .5, 0."),
    ],
)
def test_attributes_that_a_file_cannot_hold(
    tmp_path: Path, suffix: str, attributes: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_points(tmp_path / f"cloud{suffix}", PointCloud(torch.zeros(5, 3), attributes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("color", [torch.arange(15, dtype=torch.uint8).view(5, 3) * 17, torch.rand(5, 3).bfloat16()])
def test_colours_of_every_type_are_kept(tmp_path: Path, color: torch.Tensor) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    write_points(tmp_path / "cloud.ply", PointCloud(torch.zeros(5, 3), {"color": color}))
    found = read_points(tmp_path / "cloud.ply").attributes["color"]
    expected = color.float() / (255 if color.dtype == torch.uint8 else 1)
    assert (found - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_a_ply_with_one_colour_alone_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=ImportError)
    properties = "".join(
        f"property {kind} {name}\n" for kind, name in zip(["float"] * 3 + ["uchar"], "xyzr", strict=True)
    )
    header = f"ply\nformat ascii 1.0\nelement vertex 2\n{properties.replace('uchar r', 'uchar red')}end_header\n"
    (tmp_path / "cloud.ply").write_text(header + "1 2 3 4\n5 6 7 8\n")
    with pytest.raises(ValueError, match="has red alone of red green blue; all three are needed"):
        read_points(tmp_path / "cloud.ply")
