"""Routers that are trained: which blocks a sample needs at a timestep, and how much of their MLPs."""
