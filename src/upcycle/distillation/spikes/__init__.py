"""Copies that a spiking network takes of an ordinary one: its activations as rates, or its weights as they are."""
