"""How jobs and actors look on a terminal, at every width, with and without colours. It asks nobody for anything."""
