"""What a cell shows: the outcome of a check, hints, progress, results, plots."""
