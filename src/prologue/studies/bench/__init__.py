"""Measurements of speed, each against a baseline of the same process and the measured limits of the machine."""
