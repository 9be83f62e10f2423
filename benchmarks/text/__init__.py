"""Posters with graded faults in their text, and the order in which a person puts them."""
