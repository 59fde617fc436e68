"""Files of jobs on the head node: for actors whose nodes have other disks, and how long they stay."""
