"""The policies in simulation, against their targets, and the workloads that they are tried on."""
