"""Experiments: grids of runs, carried out in parallel, and what they show. Needs torch."""
