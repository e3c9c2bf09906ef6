"""Reports: what a run did, or how several differ, on one page that needs nothing else."""

from gossamer.report.comparison import COMPARISON_FILE, write_comparison
from gossamer.report.run_report import REPORT_FILE, loss_curve_png, write_report

__all__ = ["COMPARISON_FILE", "REPORT_FILE", "loss_curve_png", "write_comparison", "write_report"]
