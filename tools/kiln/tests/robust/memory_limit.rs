//! Inside a control group that may use no more memory than the budget, page cache included.

use super::harness::{self, arg};
use super::{bundle, cache, empty, expect_right_picture, run_args, succeed};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A control group of this test's own, removed with it.
struct Group(PathBuf);

impl Group {
    /// With a limit on memory and no swap beside it; `None` where this process may not make one.
    fn with_limit(limit_bytes: u64) -> Option<Group> {
        // Version 1, then version 2: the folder, the limit's file, and the one for swap with its
        // value.
        let swap = [limit_bytes, 0];
        let files = [
            ("memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
            ("", "memory.max", "memory.swap.max"),
        ];
        files.iter().zip(swap).find_map(|(&(controller, limit, no_swap), swap)| {
            let parent = Path::new("/sys/fs/cgroup").join(controller);
            if !parent.join("cgroup.procs").is_file() {
                return None;
            }
            let folder = parent.join(format!("kiln-test-{}", std::process::id()));
            fs::create_dir(&folder).ok()?;
            let group = Group(folder);
            fs::write(group.0.join(limit), limit_bytes.to_string()).ok()?;
            // Not every system counts swap.
            let _ = fs::write(group.0.join(no_swap), swap.to_string());
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_run_completes_where_there_is_no_more_memory_than_its_budget() {
    let folder = empty("memory-limit");
    let plan = kiln_bundle::BundleFile::open(bundle()).expect("just compiled");
    let budget_bytes = plan.plan().memory.budget_bytes;
    let report = folder.join("report.json");
    let mut args = run_args(bundle(), cache(), &folder);
    args.extend(["--report", arg(&report)].map(String::from));
    let group = Group::with_limit(budget_bytes);
    let mut command = Command::new("bash");
    match &group {
        Some(Group(folder)) => {
            let script = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", folder.display());
            command.args(["-c", &script, "bash"]);
        }
        None => {
            println!("no control group can be made here: the process's own peak is all there is");
            command.args(["-c", "exec \"$@\"", "bash"]);
        }
    }
    command.arg(env!("CARGO_BIN_EXE_kiln")).args(&args).current_dir(harness::root());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    succeed(command);
    expect_right_picture(&folder);
    let report = fs::read_to_string(report).expect("it was written");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let peak_bytes = report["measured"]["process_peak_bytes"].as_u64().expect("Linux tells");
    assert!(peak_bytes <= budget_bytes, "{peak_bytes} of {budget_bytes} bytes");
}
