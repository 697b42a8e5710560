"""Graphs that are made out of a network: their edges as dense blocks, and as a set that students learn from."""
