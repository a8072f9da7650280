"""Measurements of speed against a baseline in the same process and the measured limits of the machine."""
