"""What the jobs of each owner may take of the cluster."""
