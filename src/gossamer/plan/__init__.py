"""What a run would cost on chips that nobody here has: memory, layouts, time, energy and money (docs/planning.md)."""

from gossamer.plan.catalogue import Catalogue, Chip, load_catalogue
from gossamer.plan.cluster_plan import ClusterPlan, make_plan
from gossamer.plan.efficiency import Fitted, certified, fitted
from gossamer.plan.other_families import network_from_json
from gossamer.plan.serving import Serving, plan_serving
from gossamer.plan.timing import Job

__all__ = [
    "Catalogue",
    "Chip",
    "ClusterPlan",
    "Fitted",
    "Job",
    "Serving",
    "certified",
    "fitted",
    "load_catalogue",
    "make_plan",
    "network_from_json",
    "plan_serving",
]
