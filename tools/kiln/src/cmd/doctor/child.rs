//! Processes that touch drivers. A driver that crashes or hangs takes down only such a process.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::report::{Line, Stop, StopKind};
use crate::cmd::print;

/// Longest silence of a process.
const PATIENCE: Duration = Duration::from_secs(120);

/// Prefix of each line of this program. Drivers also print to standard output.
const MARK: &str = "kiln-doctor: ";

/// Prints a line for the waiting process.
pub fn tell(line: &Line) -> Result<()> {
    print::line(format_args!("\n{MARK}{}", serde_json::to_string(line)?))
}

/// Runs `kiln doctor --worker` with more arguments and environment. `hear` receives its lines.
///
/// Returns `None` if the process did all its work.
pub fn run(
    arguments: &[&str],
    environment: &[(&str, &str)],
    hear: &mut dyn FnMut(Line),
) -> Result<Option<Stop>> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(program)
        .args(["doctor", "--worker"])
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting a process for the test")?;
    let lines = lines_of(&mut child);
    let stderr = last_words(&mut child);
    let (mut doing, mut ended) = (String::from("starting"), false);
    let silent = loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(Line::Begin(what)) => {
                doing = what.clone();
                hear(Line::Begin(what));
            }
            Ok(Line::End) => ended = true,
            Ok(line) => hear(line),
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if silent {
        // The process may have ended already. Then there is nothing to stop.
        let _ = child.kill();
    }
    let status = child.wait().context("waiting for the test")?;
    if ended {
        return Ok(None);
    }
    let (kind, how) = match silent {
        true => (StopKind::Timeout, format!("took more than {} seconds", PATIENCE.as_secs())),
        false => describe(status),
    };
    let said = stderr.join().ok().filter(|said| !said.is_empty());
    let said = said.map(|said| format!(": {said}")).unwrap_or_default();
    Ok(Some(Stop { kind, what: format!("{how} while {doing}{said}") }))
}

/// Lines of this program, as they arrive.
fn lines_of(child: &mut Child) -> Receiver<Line> {
    let (send, receive) = channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).split(b'\n');
            while let Some(Ok(line)) = lines.next() {
                let line = String::from_utf8_lossy(&line);
                let ours = line.strip_prefix(MARK).and_then(|l| serde_json::from_str(l).ok());
                if ours.is_some_and(|line| send.send(line).is_err()) {
                    return;
                }
            }
        });
    }
    receive
}

/// The last line on standard error.
fn last_words(child: &mut Child) -> std::thread::JoinHandle<String> {
    let stderr = child.stderr.take();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stderr) = stderr {
            // An error leaves the bytes read so far.
            let _ = stderr.read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        last.unwrap_or_default().trim().chars().take(300).collect()
    })
}

#[cfg(unix)]
fn describe(status: ExitStatus) -> (StopKind, String) {
    use std::os::unix::process::ExitStatusExt;
    let Some(signal) = status.signal() else {
        return (StopKind::Error, format!("ended with {status}"));
    };
    let name = match signal {
        4 => "SIGILL, an instruction that this processor does not have",
        6 => "SIGABRT, it gave up",
        7 => "SIGBUS, a bad address",
        8 => "SIGFPE, a division by zero",
        9 => "SIGKILL, perhaps for want of memory",
        11 => "SIGSEGV, a bad address",
        _ => return (StopKind::Crash, format!("crashed with signal {signal}")),
    };
    (StopKind::Crash, format!("crashed with signal {signal} ({name})"))
}

#[cfg(not(unix))]
fn describe(status: ExitStatus) -> (StopKind, String) {
    (StopKind::Error, format!("ended with {status}"))
}
