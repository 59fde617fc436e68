"""What clients, Ray's dashboard and Prometheus get to see."""
