"""How the network learns: one step, with its loss, gradient, optimizer and many processes."""
