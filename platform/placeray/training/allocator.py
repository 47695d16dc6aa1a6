"""The allocator of a training process on CPU, told to keep what it frees.

All that a step keeps for backward is freed at its end. glibc gives such memory back to the system and gets it again,
page by page filled with zeros, in the next step; in a thread that is not the process's first, where Ray runs a training
loop, more so. What that costs is in docs/results/model.md.
"""

# Environment of the process, read once when it starts. glibc alone knows these names; elsewhere they do nothing.
KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**40),  # how much may lie free before any goes back
    "MALLOC_MMAP_MAX_": "0",  # no block gets a mapping of its own, which ends when it is freed
    "MALLOC_ARENA_MAX": "1",  # all threads share the one heap that may grow without end
}
