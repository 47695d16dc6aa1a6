"""A small city, drawn in the raw layouts of the real data sets: input of the demo, the tests and the benchmarks."""
