"""Devices, threads, processes, random streams, files, locks and registries; nothing here knows the models."""
