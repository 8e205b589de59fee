"""What `make demo` shows: the same answer whole and in slices, then the same model at a fraction of the cost."""
