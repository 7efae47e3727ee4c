"""Files of events: what is written comes back, other kinds against bytes made by hand, and bad input in one line."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pointcloud.events.files import read_events, read_gestures, write_events
from pointcloud.events.record import Events
from tests.pointcloud.events.files.recordings import WRITTEN, aedat31, nmnist, some_events, written

KINDS = (*WRITTEN, ".npy", ".bin", ".aedat", ".aedat4", ".evt3.raw")


def assert_same(found: Events, wanted: Events) -> None:
    for name in ("t", "x", "y", "polarity"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize("suffix", KINDS)
def test_what_is_written_comes_back(tmp_path: Path, suffix: str) -> None:
    path, events = tmp_path / f"recording{suffix}", some_events()
    written(events, path)
    found = read_events(path)
    assert_same(found, events)
    assert (found.width, found.height) == ((128, 128) if suffix == ".aedat" else (34, 34))


def test_hdf5_with_its_offset(tmp_path: Path) -> None:
    events = some_events()
    written(events, tmp_path / "events.h5")
    found = read_events(tmp_path / "events.h5")
    assert torch.equal(found.t, events.t + 1000) and torch.equal(found.polarity, events.polarity)


def test_evt2_knows_times_beyond_its_34_bits(tmp_path: Path) -> None:
    words = [8 << 28 | 0xFFFFFFF, 1 << 28 | 63 << 22 | 5 << 11 | 7, 8 << 28 | 0, 3 << 22 | 6 << 11 | 8]
    path = tmp_path / "late.raw"
    path.write_bytes(b"% evt 2.0\n% geometry 10x10\n% end\n" + struct.pack("<5I", 0x10000000, *words))
    found = read_events(path)
    assert found.t.tolist() == [(1 << 34) - 1, (1 << 34) + 3]
    assert (found.x.tolist(), found.y.tolist(), found.polarity.tolist()) == ([5, 6], [7, 8], [True, False])


def test_dat_knows_times_beyond_its_32_bits(tmp_path: Path) -> None:
    path, head = tmp_path / "late.dat", b"% Version 2\n% Height 10\n% Width 10\n% end\n\x0c\x08"
    pixel = 1 << 28 | 7 << 14 | 5
    path.write_bytes(head + struct.pack("<10I", 9, pixel, 2**31, pixel, 0xFFFFFFFF, pixel, 3, pixel, 4, pixel))
    found = read_events(path)
    assert found.t.tolist() == [9, 1 << 31, (1 << 32) - 1, (1 << 32) + 3, (1 << 32) + 4]
    assert (set(found.x.tolist()), set(found.y.tolist()), found.polarity.all().item()) == ({5}, {7}, True)
    for times in ((100, 99), (1000, 0xF0000000, 1002), (0xFFFFFFFF, 3, 0xFFFFFFFE, 4)):  # the second: a wrong bit
        path.write_bytes(head + b"".join(struct.pack("<2I", time, pixel) for time in times))
        with pytest.raises(ValueError, match=f"time runs backwards at 1 of {len(times)} events"):
            read_events(path)


def test_structured_arrays_and_signed_polarity(tmp_path: Path) -> None:
    table = np.array([(1, 2, 3, -1), (4, 5, 6, 1)], [("ts", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1")])
    np.save(tmp_path / "table.npy", table)
    found = read_events(tmp_path / "table.npy", size=(20, 10))
    assert (found.t.tolist(), found.polarity.tolist(), found.width, found.height) == ([1, 4], [False, True], 20, 10)


def test_evt3_words(tmp_path: Path) -> None:
    pytest.importorskip("evt3")
    # time high 0x8, time low 0x6, row 0x0, one pixel 0x2 with polarity at bit 11, base 0x3 and 12 pixels 0x4
    words = [0x8000, 0x6005, 0x0007, 0x2803, 0x6009, 0x0008, 0x2004, 0x3802, 0x4005]
    path = tmp_path / "words.raw"
    path.write_bytes(b"% evt 3.0\n% format EVT3;height=10;width=20\n% end\n" + struct.pack(f"<{len(words)}H", *words))
    found = read_events(path)
    assert list(zip(*(getattr(found, name).tolist() for name in ("t", "x", "y", "polarity")), strict=True)) == [
        (5, 3, 7, True), (9, 4, 8, False), (9, 2, 8, True), (9, 4, 8, True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("package", "name", "content"),
    [
        ("aedat", "a.aedat4", b"#!AER-DAT4.0\r\n"),
        ("evt3", "a.raw", b"% evt 3.0\n% end\n"),
        ("h5py", "a.h5", b""),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str, content: bytes
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportError, match=r'pip install "visual-accel\[events\]"'):
        read_events(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.bin", nmnist(some_events())[:-1], "999 bytes, no whole number of 5-byte events: cut short"),
        ("a.bin", bytes([1, 99, 0, 0, 5]), "off the sensor of 34 x 34 pixels: y from 99 to 99"),
        ("a.bin", bytes([1, 1, 0, 0, 5, 1, 1, 0, 0, 4]), "backwards at 1 of 2 events; give sort=True"),
        ("a.bin", b"", "holds no events"),
        ("a.aedat", aedat31(some_events())[:-3], "cut short or broken: a packet has no place for 8 events"),
        ("a.aedat", b"#!AER-DAT2.0\r\n", "'#!AER-DAT2.0'; AEDAT 3.1 and 4.0 are read"),
        ("a.raw", b"% evt 2.1\n% end\n", "EVT2 or EVT3"),
        ("a.dat", b"% Version 2\n\x0e\x08", "says 0e08 after its header"),
        ("a.dat", b"% Version 2\n\x0c\x08" + struct.pack("<II", 0, 2 << 28), r"polarities \[2\]; accepted: 0 and 1"),
        ("a.txt", b"", r"ends with .txt; accepted: .aedat, "),
    ],
)
def test_bad_files_are_refused_in_a_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as raised:
        read_events(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(("column", "said"), [("t", "0.5; accepted: whole microseconds"), ("x", "2.5; .* pixels")])
def test_fractions_are_not_cut_off(tmp_path: Path, column: str, said: str) -> None:
    table = {"t": [1.0, 2.0], "x": [3.0, 4.0], "y": [5.0, 6.0], "p": [0.0, 1.0]}
    np.savez(tmp_path / "a.npz", **{name: np.array(values) for name, values in table.items()})
    assert read_events(tmp_path / "a.npz").t.tolist() == [1, 2]
    table[column][0] -= 0.5
    np.savez(tmp_path / "a.npz", **{name: np.array(values) for name, values in table.items()})
    with pytest.raises(ValueError, match=f"a.npz has {column} like {said}"):
        read_events(tmp_path / "a.npz")


def test_overflows_of_the_clock_of_nmnist_are_no_events(tmp_path: Path) -> None:
    rows = [(1, 2, 0x00, 0x1F, 0xFF), (0, 240, 0, 0, 0), (3, 4, 0x80, 0, 5), (0, 240, 0, 0, 0), (5, 6, 0, 0, 7)]
    (tmp_path / "a.bin").write_bytes(bytes(number for row in rows for number in row))
    events = read_events(tmp_path / "a.bin")
    assert events.t.tolist() == [8191, 8192 + 5, 2 * 8192 + 7]
    assert events.y.tolist() == [2, 4, 6] and events.polarity.tolist() == [False, True, False]


def test_hdf5_in_seconds_with_an_offset_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in (("t", [0.25, 1.5]), ("x", [1, 2]), ("y", [1, 2]), ("p", [0, 1])):
            file[f"events/{name}"] = np.array(values)
        file["t_offset"] = 1000
    with pytest.raises(ValueError, match="t like 1000.25"):
        read_events(tmp_path / "a.h5")


def test_times_are_sorted_if_asked(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes([1, 2, 0, 0, 5, 3, 4, 0, 0, 4]))
    found = read_events(tmp_path / "a.bin", sort=True)
    assert (found.t.tolist(), found.x.tolist()) == ([4, 5], [3, 1])


@pytest.mark.parametrize(("suffix", "last"), [(".dat", 1 << 33), (".raw", 1 << 35), (".txt", 10)])
def test_what_a_file_cannot_hold_is_refused(tmp_path: Path, suffix: str, last: int) -> None:
    with pytest.raises(ValueError, match="takes times|cannot be written"):
        write_events(tmp_path / f"a{suffix}", some_events(last=last))
    assert list(tmp_path.iterdir()) == []


def test_gestures_of_a_recording(tmp_path: Path) -> None:
    (tmp_path / "user01.aedat").write_bytes(aedat31(some_events(last=1000)))
    table = tmp_path / "user01_labels.csv"
    table.write_text("class,startTime_usec,endTime_usec\n3,100,300\n\n11,300,900\n \n")
    gestures = list(read_gestures(tmp_path / "user01.aedat"))
    assert [(gesture.label, gesture.recording) for gesture in gestures] == [(2, "user01"), (10, "user01")]
    assert all(100 <= t < 300 for t in gestures[0].events.t.tolist()) and len(gestures[0].events)
    table.write_text("class,startTime_usec,endTime_usec\n3,100,300\n12,100,300\n")
    with pytest.raises(ValueError, match="classes are 1 to 11"):
        next(read_gestures(tmp_path / "user01.aedat"))
    table.unlink()
    with pytest.raises(FileNotFoundError, match="user01_labels.csv"):
        list(read_gestures(tmp_path / "user01.aedat"))
