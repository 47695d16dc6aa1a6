"""Many training runs of one search space: what to try, when to stop, what it looks like. Knows no Ray."""
