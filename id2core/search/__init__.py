"""Search: one shard, blocks of queries against shards, and exact search among latents."""
