"""Schedules of the learning rate for the section `schedule`, or for `train.lr_scheduler_type`."""
