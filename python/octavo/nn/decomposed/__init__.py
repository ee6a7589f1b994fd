"""Modules that compute with weights of their own, with layers in the place of these weights."""
