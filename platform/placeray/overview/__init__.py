"""Look at data sets: count, draw and compare what normalized outputs hold, from their columns alone."""
