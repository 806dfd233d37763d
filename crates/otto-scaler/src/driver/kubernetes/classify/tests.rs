//! Recorded statuses of real Pods, and made ones where a single node cannot provoke it.
