"""Devices, threads, processes, random streams, files, locks and registries; nothing here depends on the models."""
