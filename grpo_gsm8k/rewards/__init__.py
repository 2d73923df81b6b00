"""Graders: pure text → `Score`."""
