//! Runs a target on standard input, or under AFL++, or writes the seeds of all targets.
#![forbid(unsafe_code)]

#[cfg(not(feature = "guided"))]
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io, panic, process};

use kiln_fuzz::{TARGETS, Target, find};

const USAGE: &str = "kiln-fuzz TARGET <INPUT, kiln-fuzz --seeds FOLDER, or kiln-fuzz --list";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["--list"] => {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            fs::write("/dev/stdout", names.join("\n") + "\n")
        }
        ["--seeds", folder] => write_seeds(Path::new(folder)),
        [name] => match find(name) {
            Some(target) => run(target),
            None => Err(io::Error::other(format!("no target '{name}': kiln-fuzz --list has them"))),
        },
        _ => Err(io::Error::other(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs a target. A panic aborts, as a fuzzer takes a signal for a crash.
fn run(target: &Target) -> io::Result<()> {
    panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        process::abort();
    }));
    let folder = tempfile::tempdir()?;
    #[cfg(not(feature = "guided"))]
    {
        let mut input = Vec::new();
        io::stdin().read_to_end(&mut input)?;
        (target.run)(folder.path(), &input);
    }
    #[cfg(feature = "guided")]
    afl::fuzz(false, |input| (target.run)(folder.path(), input));
    Ok(())
}

fn write_seeds(folder: &Path) -> io::Result<()> {
    for target in TARGETS {
        let own = folder.join(target.name);
        fs::create_dir_all(&own)?;
        for (index, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(own.join(index.to_string()), seed)?;
        }
    }
    Ok(())
}
