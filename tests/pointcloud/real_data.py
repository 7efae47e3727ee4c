"""Real scans out of source packages: python -m tests.pointcloud.real_data FOLDER; offline it says so."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

FOLDER = Path(__file__).parents[2] / ".venv" / "real-data"
PACKAGES = ("laspy", "small-gicp")  # BSD and MIT; nothing of them is kept in this repository
SUFFIXES = (".las", ".laz", ".ply")
SECONDS = 150


def scans(folder: Path = FOLDER) -> list[Path]:
    """Return the files of points that an earlier `fetch` has left, none if there was no network."""
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)


def fetch(package: str, folder: Path) -> str:
    """Take the files of points out of a package's source distribution, by pip; return a line on what was done."""
    place = folder / package
    if place.is_dir():
        return f"{package}: its scans are there"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    options = ["--retries", "1", "--no-binary", package, "--dest", str(folder), package]
    try:
        subprocess.run([*command, *options], check=True, capture_output=True, timeout=SECONDS)
        (archive,) = folder.glob(f"{package.replace('-', '[-_]')}-*.tar.gz")
        return f"{package}: {unpack(archive, place)} scans"
    except (subprocess.SubprocessError, OSError, ValueError, tarfile.TarError) as error:
        return f"{package}: no source package ({type(error).__name__}); tests on its real scans are skipped"


def unpack(archive: Path, place: Path) -> int:
    """Write the files of points in an archive to a folder, by their own names; return how many there were."""
    count = 0
    with tarfile.open(archive) as package:
        for member in package:
            name = PurePosixPath(member.name)
            if member.isfile() and name.suffix in SUFFIXES and (content := package.extractfile(member)) is not None:
                place.mkdir(parents=True, exist_ok=True)
                (place / name.name).write_bytes(content.read())
                count += 1
    return count


def main() -> None:
    """Fetch all packages into the folder that is named; never fail."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        print(f"real data: {fetch(package, folder)}", flush=True)


if __name__ == "__main__":
    main()
