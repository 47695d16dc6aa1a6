"""One file per job: its paths and the configs of the rooms it calls."""
