"""How accel sits on diffusers models."""
