"""Where the files of jobs live beyond this machine: folders of buckets, and local folders that are mirrored there."""
