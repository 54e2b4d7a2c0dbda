"""An independent float64 oracle of the published method, and what tests need to compare the engine with it."""
