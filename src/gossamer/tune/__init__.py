"""How a trained network is taught its own user's work: from conversations, preferences and ratings."""
