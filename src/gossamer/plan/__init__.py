"""What a run would cost on chips that nobody here has: memory, layouts, time, energy and money (docs/planning.md)."""

from gossamer.plan.catalogue import Catalogue, Chip, load_catalogue
from gossamer.plan.certificate import certified
from gossamer.plan.efficiency import Fitted, fitted
from gossamer.plan.families import workload_from
from gossamer.plan.plan import Plan, make_plan
from gossamer.plan.serving import Serving, serve
from gossamer.plan.timing import Job
from gossamer.plan.workload import Workload, workload_of

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
