"""What a run would cost on chips that nobody here has: memory, layouts, time, energy and money (docs/planning.md)."""

from gossamer.plan.catalogue import Catalogue, Chip, load_catalogue
from gossamer.plan.cluster_plan import ClusterPlan, make_plan
from gossamer.plan.efficiency import FittedEfficiency, apply_certificate, load_fitted_efficiency
from gossamer.plan.other_families import network_from_json
from gossamer.plan.serving import Serving, plan_serving
from gossamer.plan.timing import Job

__all__ = [
    "Catalogue",
    "Chip",
    "ClusterPlan",
    "FittedEfficiency",
    "Job",
    "Serving",
    "apply_certificate",
    "load_catalogue",
    "load_fitted_efficiency",
    "make_plan",
    "network_from_json",
    "plan_serving",
]
