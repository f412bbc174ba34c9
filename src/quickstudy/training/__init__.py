"""Training small networks from scratch: recipes, input pipeline, loop, checkpoints, evaluator, export. Needs torch."""

import os

# torch's threads spin for milliseconds while they wait for each other. Beside another process on the same cores, like
# the evaluator, that made a step ten times as long. So many turns (some 20 µs) cost a step alone nothing; sleeping at
# once (OMP_WAIT_POLICY=PASSIVE) cost an eighth. Read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
