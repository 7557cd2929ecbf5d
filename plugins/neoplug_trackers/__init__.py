"""Trackers of experiments, for the section `trackers` or for `report_to`."""
