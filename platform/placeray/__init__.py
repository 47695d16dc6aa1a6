"""SelaVPR++ visual place recognition at city scale: train, sweep, index and serve."""

__version__ = "0.1.0"
