"""Training small networks from scratch: recipes, input pipeline, loop, checkpoints, evaluator, export. Needs torch."""
