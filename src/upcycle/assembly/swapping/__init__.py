"""Blocks put into trained networks: the parts of ``swap``."""
