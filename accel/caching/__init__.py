"""Which steps and blocks are not computed at all."""
