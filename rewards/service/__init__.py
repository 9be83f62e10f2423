"""Scoring in another process: the server that `winsome reward serve` starts, and its client."""
