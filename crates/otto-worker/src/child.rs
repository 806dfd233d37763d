//! The job as a process: started once, signalled as a group, and everything it leaves behind ended and reaped.

mod kin;
mod launch;
mod reap;
mod signals;
mod stop;

pub(crate) use kin::{Lost, boot_id, end_lost, end_rest, session, ticks};
pub(crate) use launch::{Job, LaunchError, Mark, PID_DIGITS, environment, launch, prepare};
pub(crate) use reap::{JobEnd, reap};
pub(crate) use signals::Signals;
pub(crate) use stop::{Act, Stop, Why};
