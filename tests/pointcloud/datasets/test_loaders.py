"""Folders laid out as the data sets are, made here and read back, and one clear line for each kind of bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pointcloud.datasets import (
    MODELNET40,
    SEMANTIC_KITTI,
    KITTIObjects,
    ModelNet40,
    SemanticKITTI,
    from_raw,
    read_calibration,
    read_objects,
    to_raw,
)
from pointcloud.datasets.semantic_kitti import NOT_LEARNT, RAW_IDS

# x of the LiDAR is the camera's depth, y its left, z its up; the camera stands 0.27 m before and 0.08 m below.
CALIBRATION = """P2: 700 0 600 0 0 700 180 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27

"""
CAR = "Car 0.10 0 -1.5 600 150 650 200 1.5 1.6 4.0 2.0 1.67 9.73 {turn}"


def modelnet(root: Path) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    for name in ("night_stand_0001", "airplane_0002"):
        (root / name.rpartition("_")[0]).mkdir()
        np.savetxt(root / name.rpartition("_")[0] / f"{name}.txt", rows, "%.9g", ",")
    (root / "modelnet40_test.txt").write_text("night_stand_0001\nairplane_0002\n")
    return rows


def semantic_kitti(root: Path, sequence: str = "08", labels: tuple[int, ...] = (10, 252, 1, 81)) -> Path:
    folder = root / "sequences" / sequence
    (folder / "velodyne").mkdir(parents=True)
    (folder / "labels").mkdir()
    np.arange(16, dtype="<f4").tofile(folder / "velodyne" / "000000.bin")
    np.array([7 << 16 | label for label in labels], "<u4").tofile(folder / "labels" / "000000.label")
    return folder


def kitti(root: Path, turn: float = 0.0) -> Path:
    for name in ("velodyne", "calib", "label_2"):
        (root / "training" / name).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("000003\n")
    rows = [[10, -2, -1, 0.5], [10.3, -1.5, -1.2, 0.25], [20, 1, 0, 0.75], [-10, 0, -1, 1], [5, 30, 0, 0]]
    np.array(rows, "<f4").tofile(root / "training" / "velodyne" / "000003.bin")
    (root / "training" / "calib" / "000003.txt").write_text(CALIBRATION)
    ignored = "DontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10"
    (root / "training" / "label_2" / "000003.txt").write_text(f"{CAR.format(turn=turn)}\n{ignored}\n")
    return root / "training"


def test_modelnet(tmp_path: Path) -> None:
    rows = modelnet(tmp_path)
    objects = ModelNet40(tmp_path, "test", None)
    assert [MODELNET40[objects[row].label or 0] for row in range(len(objects))] == ["night_stand", "airplane"]
    assert np.array_equal(objects[0].cloud.values(("normal",)).numpy(), rows)
    assert len(MODELNET40) == 40 and list(MODELNET40) == sorted(MODELNET40)


def test_modelnet_is_thinned_and_kept(tmp_path: Path) -> None:
    rows = modelnet(tmp_path)
    cloud = ModelNet40(tmp_path, "test", 8, tmp_path / "kept")[0].cloud
    assert np.array_equal(cloud.xyz[0].numpy(), rows[0, :3]) and len(cloud.xyz.unique(dim=0)) == 8
    assert {tuple(row) for row in cloud.values(("normal",)).tolist()} <= {tuple(row) for row in rows.tolist()}
    (tmp_path / "night_stand" / "night_stand_0001.txt").unlink()
    again = ModelNet40(tmp_path, "test", 8, tmp_path / "kept")[0].cloud
    assert again.xyz.equal(cloud.xyz) and again.attributes["normal"].equal(cloud.attributes["normal"])
    with pytest.raises(FileNotFoundError, match="night_stand_0001.txt, which the list"):
        ModelNet40(tmp_path, "test", 9, tmp_path / "kept")[0]


@pytest.mark.parametrize("text", ["1,2,3\n", "1,2,3,4,5,nan\n", "1,2,3,4,5,six\n"])
def test_a_broken_object_is_named(tmp_path: Path, text: str) -> None:
    modelnet(tmp_path)
    (tmp_path / "airplane" / "airplane_0002.txt").write_text(text)
    with pytest.raises(ValueError, match=r"airplane_0002\.txt (must hold|cannot be read)"):
        ModelNet40(tmp_path, "test")[1]


def test_lists_of_modelnet_are_checked(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(FileNotFoundError, match="give the folder of modelnet40_normal_resampled"):
        ModelNet40(tmp_path, "train")
    (tmp_path / "modelnet40_train.txt").write_text("spaceship_0001")
    with pytest.raises(ValueError, match="names spaceship_0001, of no class"):
        ModelNet40(tmp_path, "train")
    (tmp_path / "modelnet40_train.txt").write_text("")
    with pytest.raises(ValueError, match="names nothing"):
        ModelNet40(tmp_path, "train")
    with pytest.raises(ValueError, match="split is 'val'; accepted: train, test"):
        ModelNet40(tmp_path, "val")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="points must be 1 or more"):
        ModelNet40(tmp_path, "train", 0)


def test_semantic_kitti(tmp_path: Path) -> None:
    semantic_kitti(tmp_path)
    scans = SemanticKITTI(tmp_path, "val")
    cloud, label = scans[0]
    assert label is None and len(scans) == 1
    assert cloud.attributes["label"].tolist() == [0, 0, -1, 18]  # a moving car is a car, an outlier is not learnt
    assert cloud.values(("intensity",)).tolist() == torch.arange(16.0).view(4, 4).tolist()


def test_classes_there_and_back() -> None:
    assert len(SEMANTIC_KITTI) == 19 and len({*sum(RAW_IDS.values(), ()), *NOT_LEARNT}) == 34
    rows = torch.arange(-1, 19)
    assert from_raw(to_raw(rows)).equal(rows)
    with pytest.raises(ValueError, match=r"there are no classes \[9, 77\]; accepted: 0, 1, 10"):
        from_raw(torch.tensor([10, 77, 9]))


def test_scans_of_the_test_have_no_labels(tmp_path: Path) -> None:
    folder = semantic_kitti(tmp_path, "11")
    (folder / "labels" / "000000.label").unlink()
    assert list(SemanticKITTI(tmp_path, "test")[0].cloud.attributes) == ["intensity"]


def test_broken_scans_are_named(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(FileNotFoundError, match="give the folder that holds sequences/00/velodyne"):
        SemanticKITTI(tmp_path, "train")
    with pytest.raises(ValueError, match="split is 'all'"):
        SemanticKITTI(tmp_path, "all")  # pyright: ignore[reportArgumentType]
    semantic_kitti(tmp_path, "08", (10, 10, 3, 10))
    with pytest.raises(ValueError, match=r"the labels of .*000000.bin: there are no classes \[3\]"):
        SemanticKITTI(tmp_path, "val")[0]
    folder = semantic_kitti(tmp_path, "00", (10, 10))
    with pytest.raises(ValueError, match="2 labels for 4 points"):
        SemanticKITTI(tmp_path, "train")[0]
    (folder / "labels" / "000000.label").unlink()
    with pytest.raises(FileNotFoundError, match="000000.label"):
        SemanticKITTI(tmp_path, "train")[0]


def test_kitti(tmp_path: Path) -> None:
    kitti(tmp_path)
    (scene,) = (KITTIObjects(tmp_path)[row] for row in range(1))
    # A turn of 0 in the camera looks to its right, which is -y of the LiDAR.
    expected = torch.tensor([[10.0, -2.0, -1.0, 4.0, 1.6, 1.5, -math.pi / 2]])
    torch.testing.assert_close(scene.boxes, expected, rtol=0, atol=1e-5)
    # Behind the camera and left of its picture nothing is kept.
    assert scene.cloud.xyz[:, 0].tolist() == pytest.approx([10, 10.3, 20])
    assert scene.cloud.attributes["label"].tolist() == scene.cloud.attributes["instance"].tolist() == [0, 0, -1]
    assert scene.points_per_box.tolist() == [2] and scene.classes.tolist() == [0]


def test_kittis_test_split_has_no_labels(tmp_path: Path) -> None:
    kitti(tmp_path)
    (tmp_path / "ImageSets" / "test.txt").write_text("000003\n")
    with pytest.raises(ValueError, match="split is 'test', whose labels are not public; accepted: 'train', 'val'"):
        KITTIObjects(tmp_path, "test")


def test_vans_and_sitting_persons_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    folder = kitti(tmp_path)
    car = CAR.format(turn=0)
    (folder / "label_2" / "000003.txt").write_text(f"Van{car[3:]}\n{car}\nPerson_sitting{car[3:]}\nTruck{car[3:]}\n")
    scene = KITTIObjects(tmp_path)[0]
    assert scene.classes.tolist() == [0, 0, 1] and scene.points_per_box.tolist() == [2, 0, 0]
    assert scene.cloud.attributes["label"].tolist() == scene.cloud.attributes["instance"].tolist() == [0, 0, -1]
    assert not scene.visible[1:].any() and scene.boxes[1].equal(scene.boxes[0])
    own = KITTIObjects(tmp_path, classes=("Car", "Van"))[0]
    assert own.classes.tolist() == [1, 0] and own.points_per_box.tolist() == [2, 0]
    assert len(KITTIObjects(tmp_path, classes=("Cyclist",))[0].boxes) == 0


def test_kitti_whole_on_the_ground_and_of_other_classes(tmp_path: Path) -> None:
    kitti(tmp_path)
    scene = KITTIObjects(tmp_path, "train", ("Cyclist", "Car"), whole=True, ground=-1.75)[0]
    assert len(scene.cloud) == 5 and scene.classes.tolist() == [1]
    assert scene.boxes[0, 2].item() == pytest.approx(0.75) and scene.cloud.xyz[2, 2].item() == pytest.approx(1.75)
    empty = KITTIObjects(tmp_path, "train", ("Cyclist",))[0]
    assert empty.boxes.shape == (0, 7) and empty.cloud.attributes["label"].tolist() == [-1, -1, -1]


def test_a_picture_says_how_wide_it_is(tmp_path: Path) -> None:
    folder = kitti(tmp_path)
    (folder / "image_2").mkdir()
    picture = folder / "image_2" / "000003.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8) + (600).to_bytes(4, "big") + (375).to_bytes(4, "big"))
    assert KITTIObjects(tmp_path)[0].cloud.xyz[:, 0].tolist() == [20]  # the others are right of its middle
    picture.write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="000003.png is no PNG picture"):
        KITTIObjects(tmp_path)[0]


@pytest.mark.parametrize("turn", [-3.0, -1.0, 0.5, 2.0])
def test_headings(tmp_path: Path, turn: float) -> None:
    folder = kitti(tmp_path, turn)
    box = read_objects(folder / "label_2" / "000003.txt", read_calibration(folder / "calib" / "000003.txt")).boxes[0]
    # The camera turns from its x, the LiDAR's -y, towards -z, the LiDAR's -x.
    ahead = torch.tensor([-math.sin(turn), -math.cos(turn)])
    torch.testing.assert_close(torch.stack([box[6].cos(), box[6].sin()]), ahead, rtol=0, atol=1e-5)
    assert -math.pi <= box[6] < math.pi


@pytest.mark.parametrize(
    ("truncated", "occluded", "top", "level"),
    [(0.1, 0, 150, 0), (0.1, 0, 170, 1), (0.4, 0, 150, 2), (0.0, 1, 150, 1), (0.0, 3, 150, -1), (0.0, 0, 180, -1)],
)
def test_difficulties(tmp_path: Path, truncated: float, occluded: int, top: int, level: int) -> None:
    folder = kitti(tmp_path)
    line = f"Car {truncated} {occluded} 0 600 {top} 650 200 1.5 1.6 4 2 1.67 9.73 0"
    (folder / "label_2" / "000003.txt").write_text(line)
    objects = read_objects(folder / "label_2" / "000003.txt", read_calibration(folder / "calib" / "000003.txt"))
    assert objects.types == ["Car"] and objects.difficulties.tolist() == [level]


def test_broken_frames_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no class Lorry; accepted: Car"):
        KITTIObjects(tmp_path, "train", ("Lorry",))
    with pytest.raises(FileNotFoundError, match="train.txt; give the folder of KITTI's object benchmark"):
        KITTIObjects(tmp_path)
    folder = kitti(tmp_path)
    for text in ("Car 0 0\n", CAR.format(turn="nan"), CAR.format(turn="left"), "Plane" + CAR[3:].format(turn=0)):
        (folder / "label_2" / "000003.txt").write_text(text)
        with pytest.raises(ValueError, match="line 1 of .*000003.txt must be one of Car, .* and 14 numbers"):
            KITTIObjects(tmp_path)[0]
    for text in (CALIBRATION[:60], CALIBRATION.replace("700", "much"), CALIBRATION.replace("R0_rect", "R")):
        (folder / "calib" / "000003.txt").write_text(text)
        with pytest.raises(ValueError, match="000003.txt must hold (P2|R0_rect|Tr_velo_to_cam) with"):
            KITTIObjects(tmp_path)[0]
    (folder / "calib" / "000003.txt").write_text(CALIBRATION.replace("R0_rect: 1", "R0_rect: 0"))
    with pytest.raises(ValueError, match="a calibration that no camera has"):
        KITTIObjects(tmp_path)[0]
    (folder / "calib" / "000003.txt").unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        KITTIObjects(tmp_path)[0]
