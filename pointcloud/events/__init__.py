"""Events of cameras that send changes of brightness: the record, files, a simulator and pictures."""

from pointcloud.events.record import Events

__all__ = ["Events"]
