//! The real program against servers of these tests.

mod follow;
mod logs;
mod servers;
mod submit;
mod tasks;
mod usage;
