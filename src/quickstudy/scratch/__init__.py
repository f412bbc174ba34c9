"""Training small networks from scratch, in torch.

Read in this order: recipe.py (what is trained), data.py and input.py (images to batches), networks.py and layers.py,
state.py (optimisers, and what a checkpoint holds), train.py (the loop), evaluation.py and export.py (what came of it);
beside them folder.py (the run's files), summaries.py (what a run tells and writes) and parallel.py (several devices).
"""
