"""Recordings of event cameras in files of every usual kind."""

from pointcloud.events.files.gesture import Gesture, read_gestures
from pointcloud.events.files.read import SUFFIXES, read_events
from pointcloud.events.files.write import write_events

__all__ = ["SUFFIXES", "Gesture", "read_events", "read_gestures", "write_events"]
