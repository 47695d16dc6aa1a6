"""Evaluation: how often a map names the right place, how fast, how sure, and a page that shows it."""
