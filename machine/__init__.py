"""Devices and processes: hardware, distributed."""
