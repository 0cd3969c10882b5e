"""Reads and writes the weights of other code bases: one table of names a family, one engine."""
