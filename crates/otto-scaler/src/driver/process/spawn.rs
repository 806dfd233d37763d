//! Starts the agent: `posix_spawn`, whose child shares the memory of the scaler until it executes, so that a start costs
//! the same however large the scaler is. The standard library uses it too, but cannot begin a session with it.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::process::Pid;

/// Starts `arguments[0]` in a session of its own, with this environment and nothing else, no new privileges, default
/// signals, /dev/null as stdin and stdout, and `stderr`. Blocks until the program is executed.
///
/// # Errors
/// Those of `execve` and of the fork.
#[allow(unsafe_code)]
pub(super) fn spawn(arguments: &[CString], environment: &[CString], stderr: BorrowedFd<'_>) -> io::Result<Pid> {
    // Inherited through the fork. It stays with the calling thread, which executes nothing but workers.
    rustix::thread::set_no_new_privs(true)?;

    let program = arguments.first().ok_or(io::ErrorKind::InvalidInput)?;
    let pointers = |list: &[CString]| -> Vec<*mut libc::c_char> {
        list.iter().map(|text| text.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    let actions = FileActions::new(stderr)?;
    let attributes = Attributes::new()?;
    let mut pid = 0;
    // SAFETY: all strings end with NUL and live until the call returns, both lists end with a null pointer, and the
    // kernel and C library only read them; actions and attributes are initialised.
    let error = unsafe {
        libc::posix_spawn(&mut pid, program.as_ptr(), &actions.0, &attributes.0, argv.as_ptr(), envp.as_ptr())
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn checked(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    #[allow(unsafe_code)]
    fn new(stderr: BorrowedFd<'_>) -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: initialises what it is given a pointer to, and says so by 0.
        let mut actions = unsafe {
            checked(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            FileActions(actions.assume_init())
        };
        let null = c"/dev/null";
        // SAFETY: initialised above; the path is copied.
        unsafe {
            checked(libc::posix_spawn_file_actions_addopen(&mut actions.0, 0, null.as_ptr(), libc::O_RDONLY, 0))?;
            checked(libc::posix_spawn_file_actions_addopen(&mut actions.0, 1, null.as_ptr(), libc::O_WRONLY, 0))?;
            checked(libc::posix_spawn_file_actions_adddup2(&mut actions.0, stderr.as_raw_fd(), 2))?;
        }
        Ok(actions)
    }
}

impl Drop for FileActions {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe {
            libc::posix_spawn_file_actions_destroy(&mut self.0);
        }
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    #[allow(unsafe_code)]
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialises what it is given a pointer to, and says so by 0.
        let mut attributes = unsafe {
            checked(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            Attributes(attributes.assume_init())
        };
        // The flags are c_int in one C library's declarations and c_short in another's; all are below 256.
        let flags = libc::POSIX_SPAWN_SETSID as libc::c_short
            | libc::POSIX_SPAWN_SETSIGMASK as libc::c_short
            | libc::POSIX_SPAWN_SETSIGDEF as libc::c_short;
        let mut set = MaybeUninit::uninit();
        // SAFETY: the set is initialised by sigfillset or sigemptyset before it is read; attributes above.
        unsafe {
            // Whatever the scaler or who started it ignores (SIGPIPE, SIGHUP under nohup) is not the job's.
            libc::sigfillset(set.as_mut_ptr());
            checked(libc::posix_spawnattr_setsigdefault(&mut attributes.0, set.as_ptr()))?;
            libc::sigemptyset(set.as_mut_ptr());
            checked(libc::posix_spawnattr_setsigmask(&mut attributes.0, set.as_ptr()))?;
            checked(libc::posix_spawnattr_setflags(&mut attributes.0, flags))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe {
            libc::posix_spawnattr_destroy(&mut self.0);
        }
    }
}
