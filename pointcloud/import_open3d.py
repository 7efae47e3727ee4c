"""Import open3d where it is needed, or say what is missing."""

from __future__ import annotations

from typing import Any

LIBRARIES = "libusb-1.0-0 libgl1 libegl1 libx11-6 libudev1 libidn2-0"


def import_open3d() -> Any:
    """Return open3d; ImportError that says what to install."""
    try:
        import open3d
    except ModuleNotFoundError as error:
        raise ImportError(".ply and .pcd need open3d, driving scenes too: pip install open3d") from error
    except (ImportError, OSError) as error:
        raise ImportError(f"open3d needs libraries of the system ({error}): apt install {LIBRARIES}") from error
    return open3d
