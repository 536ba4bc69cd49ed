//! Names of things: shards, slots, clients, lanes, origin ids, hub ids, and time.
