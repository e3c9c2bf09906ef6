"""What a network and a run cost: parameters, FLOPs, memory, device-hours, energy and money."""
