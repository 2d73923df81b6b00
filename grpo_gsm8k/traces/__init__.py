"""Reasoning traces to training pairs."""
