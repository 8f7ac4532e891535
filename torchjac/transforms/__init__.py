"""The public transforms: thin, for they only say what is asked."""
