"""Adaptation of a network while it is used: the adapter, losses of an input alone, and a network with two heads."""
