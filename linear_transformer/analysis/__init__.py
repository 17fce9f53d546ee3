"""Curves, pictures and tables of runs, and measurements during training."""
