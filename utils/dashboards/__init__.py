"""A latent's page: the facts, the view, the index of top examples."""
