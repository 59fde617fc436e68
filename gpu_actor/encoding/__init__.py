"""From what users send, data sets and questions, to token ids: in processes with limits."""
