"""Devices and processes: hardware, threads, distributed."""
