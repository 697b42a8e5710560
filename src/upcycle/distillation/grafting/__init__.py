"""Blocks of two networks that take each other's place: cut, checked, wrapped in adapters, merged."""
