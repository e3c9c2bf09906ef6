"""How the network learns: one step, repeated."""
