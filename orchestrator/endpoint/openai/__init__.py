"""The part of the door that OpenAI's clients call: what they send, who answers it, and in which form."""
