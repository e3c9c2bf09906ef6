"""What a run would cost on chips that nobody here has: memory, layouts, time, energy and money (docs/planning.md)."""

from gossamer.cost.planner.catalogue import Catalogue, Chip, load_catalogue
from gossamer.cost.planner.certificate import certified
from gossamer.cost.planner.efficiency import Fitted, fitted
from gossamer.cost.planner.families import workload_from
from gossamer.cost.planner.plan import Plan, make_plan
from gossamer.cost.planner.serving import Serving, serve
from gossamer.cost.planner.timing import Job
from gossamer.cost.planner.workload import Workload, workload_of

__all__ = [
    "Catalogue",
    "Chip",
    "Fitted",
    "Job",
    "Plan",
    "Serving",
    "Workload",
    "certified",
    "fitted",
    "load_catalogue",
    "make_plan",
    "serve",
    "workload_from",
    "workload_of",
]
