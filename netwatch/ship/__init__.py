"""`netwatch ship`: puts each sealed segment into a bucket, once, and marks it when the bucket was read back."""
