"""What clients, Ray's dashboard and Prometheus are told."""
