//! The job as a process: started once, signalled as a group, and everything it leaves behind ended and reaped.

mod inherited;
mod kin;
mod launch;
mod memory;
mod reap;
mod signals;
mod stop;

pub(crate) use inherited::Inherited;
pub(crate) use kin::{Lost, boot_id, end_lost, end_rest, pid_namespace, session, ticks};
pub(crate) use launch::{Job, LaunchError, Mark, PID_DIGITS, launch, prepare};
pub(crate) use memory::{Memory, Shortage};
pub(crate) use reap::{JobEnd, reap};
pub(crate) use signals::Signals;
pub(crate) use stop::{Act, Stop, Why};
