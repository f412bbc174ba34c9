"""Sweeps are grids of runs, carried out in parallel, and what they show; they need torch."""
