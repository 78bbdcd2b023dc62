"""What checkers say and how they run: exercises, demands, implementations and where these run, costs."""
