"""Every buffer gets a place, every weight an offset, every hazard a barrier."""
