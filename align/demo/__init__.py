"""The whole circle on one machine, with simulated designers: ``winsome demo``."""
