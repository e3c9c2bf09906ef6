"""What a network and a run cost: parameters, FLOPs, memory, device-hours, energy and money."""

from gossamer.cost.ledger import LEDGER_FILE, Estimate, Ledger, Work, flops_by_part, read_ledger

__all__ = ["LEDGER_FILE", "Estimate", "Ledger", "Work", "flops_by_part", "read_ledger"]
