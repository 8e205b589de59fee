"""What slices, stages of shards, hops and starts would take, from the profile and the platform."""
