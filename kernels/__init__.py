"""Fast forms of what the chapters compute. Solutions, recipes and benchmarks import them; students never need to."""
