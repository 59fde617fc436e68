"""The part that decides who trains where. Everything here is pure: neither Ray nor torch nor a clock."""
