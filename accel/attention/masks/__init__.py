"""Static shapes of attention, as masks of blocks."""
