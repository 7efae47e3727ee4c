"""The commands of `pointcloud`, one a file."""
