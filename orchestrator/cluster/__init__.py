"""The Ray cluster: its file, its address, its nodes, places and actors."""
