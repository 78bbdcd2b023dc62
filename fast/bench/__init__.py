"""`make bench`: every fast form against the plain formulation of the same quantity."""
