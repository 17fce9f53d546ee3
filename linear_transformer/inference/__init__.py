"""Sampling, infilling and evaluation of trained models."""
