"""What chapters talk about: words and texts, tables of what was found in them, and random controls."""
