"""`make bench`: every kernel against the plain formulation of the same quantity."""
