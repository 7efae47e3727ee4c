"""Operations and energy of any network, layer by layer, at the rates that its input makes its neurons fire."""

from pointcloud.metering.meter import energy
from pointcloud.metering.record import Energy, LayerEnergy

__all__ = ["Energy", "LayerEnergy", "energy"]
