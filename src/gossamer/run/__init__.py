"""What keeps a training run alive: its loop, its end, its checkpoints, its log and what it costs."""
