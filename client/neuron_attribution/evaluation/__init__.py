"""The paper's protocol over a running service: which neurons it takes away, and what the model says without them."""
