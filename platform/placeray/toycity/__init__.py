"""A small city in the raw layouts of the real data sets: input of demo, tests and benchmarks."""
