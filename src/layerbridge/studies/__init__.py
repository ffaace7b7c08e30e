"""Studies: a grid of runs, its shared features and baselines, brought to the end whatever interrupts it."""
