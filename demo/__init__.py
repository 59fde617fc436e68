"""`make demo`: jobs come and go on one base model of this machine, and answer while they train."""
