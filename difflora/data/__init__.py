"""From a folder of images to batches: scanning, captions, buckets, the order of samples, and caches."""
