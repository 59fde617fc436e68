"""Who is asked what, where it is answered, and how the answers come back."""
