"""How one name becomes another in a text."""
