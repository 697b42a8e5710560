"""Layers of two networks whose features can be compared: found by name, or by depth and shape."""
