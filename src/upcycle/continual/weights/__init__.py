"""What methods compute of a network's weights or put in their place: importances, penalties, masks."""
