"""Measures of a network: its cost, the similarity of its features to another's, and its exports."""
