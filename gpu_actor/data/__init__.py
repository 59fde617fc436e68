"""From records to token ids and labels."""
