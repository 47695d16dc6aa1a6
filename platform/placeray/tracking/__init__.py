"""Runs, metrics and models in MLflow: the only room that imports it, and only when a run is opened."""
