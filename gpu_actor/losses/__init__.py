"""What is made of hidden states and labels; no base model in it."""
