"""Training without Ray: feed, step, schedule, loop, validation, resume; alone or in a torch process group."""
