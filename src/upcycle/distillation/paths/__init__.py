"""Shortest paths through a graph by the attention of a trained network: what SPAGAN rests on."""
