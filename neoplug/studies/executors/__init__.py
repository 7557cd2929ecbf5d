"""Executors: where the jobs of a study run, and how their processes are started, watched and stopped.

Imported by the scheduler. Does not belong here: what a job does (`studies.worker`), which jobs there are
(`studies.search`), how often a lost one is tried again (`studies.scheduler`).
"""

from neoplug.studies.executors.base import Ended, Executor
from neoplug.studies.executors.choice import make_executor

__all__ = ["Ended", "Executor", "make_executor"]
