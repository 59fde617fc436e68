"""Processes with limits on memory and time, in which what strangers send is executed and expanded."""
