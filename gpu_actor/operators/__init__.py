"""The arithmetic of many adapters on one frozen layer, a file per adapter kind."""
