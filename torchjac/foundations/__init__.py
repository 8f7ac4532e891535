"""What everything else stands on: trees, leaf layouts and seeds."""
