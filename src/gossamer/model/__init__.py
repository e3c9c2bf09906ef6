"""What the network is: one file a part, named as in the checkpoint."""
