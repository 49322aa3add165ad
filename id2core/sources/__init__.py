"""Where a corpus takes its images from: folders, tar and Parquet shards, lists of URIs."""
