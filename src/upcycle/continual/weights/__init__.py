"""Importances, penalties and masks: computed of a network's weights, kept beside them, or put in their place."""
