"""Search: which photos of a map resemble a query, by binary code, then by float descriptor.

Needs neither torch nor Ray.

Shape letters: `Q` queries, `N` rows of the map, `S` shortlist, `D` descriptor, `W` 64-bit words of a code.
"""
