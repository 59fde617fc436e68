"""Tenants of one base model and the loop over their shared batches."""
