"""What a function captured: found once, watched afterwards, and kept alive by nobody here."""
