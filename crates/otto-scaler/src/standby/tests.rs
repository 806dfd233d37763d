//! Against a real Redis: two replicas on one stream.
